import torch

from capsprune.data.images import TensorImages
from capsprune.pipeline.analyse import spread_images


def image_set(labels):
    return TensorImages(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)


def test_every_class_has_its_part_even_where_labels_come_in_turn():
    for labels in (torch.arange(100) % 10, torch.arange(100) // 10):
        chosen = spread_images(image_set(labels), 20).labels
        assert torch.bincount(chosen).tolist() == [2] * 10


def test_at_most_all_images_are_taken_each_once():
    images = image_set(torch.tensor([1, 0, 1, 2]))
    images.storage[:] = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    fetched, labels = spread_images(images, 10).__getitems__(range(4))
    assert labels.tolist() == [0, 1, 1, 2]
    assert fetched[:, 0, 0, 0].tolist() == [1, 0, 2, 3]
