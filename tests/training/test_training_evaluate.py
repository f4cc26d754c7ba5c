import pytest
import torch
from torch import nn

from capsprune.training.evaluate import evaluate
from capsprune.training.objective import CROSS_ENTROPY


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        yield (
            torch.randn(size, 6, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )


@pytest.mark.parametrize("sizes", [(1,), (7, 3), (64, 1), (5, 5, 2, 1)])
def test_averages_are_over_images_not_batches(sizes):
    torch.manual_seed(0)
    network = nn.Linear(6, 4)
    result = evaluate(network, batches(*sizes), CROSS_ENTROPY)
    images, labels = (torch.cat(parts) for parts in zip(*batches(*sizes), strict=True))
    logits = network(images)
    assert result.images == sum(sizes)
    assert result.accuracy == (logits.argmax(1) == labels).double().mean()
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels).detach()))
    assert result.to_dict() == {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "images": sum(sizes),
    }


def test_each_class_has_its_own_accuracy():
    images = torch.eye(4).repeat(3, 1)
    labels = torch.tensor([0, 1, 1, 1] * 3)  # class 3 is absent, and 2 too
    network = nn.Identity()
    result = evaluate(network, [(images[:5], labels[:5]), (images[5:], labels[5:])], CROSS_ENTROPY)
    assert (result.class_images, result.class_correct) == ((3, 9, 0, 0), (3, 3, 0, 0))
    assert result.majority_rate == 0.75 and result.accuracy == 0.5
    assert result.by_class("abcd") == [
        {"class": "a", "images": 3, "accuracy": 1.0},
        {"class": "b", "images": 9, "accuracy": 1 / 3},
        {"class": "c", "images": 0, "accuracy": None},
        {"class": "d", "images": 0, "accuracy": None},
    ]


def test_evaluation_mode_without_gradients():
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 4)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = evaluate(network, batches(8, 3), CROSS_ENTROPY)
    assert not network.training and first == evaluate(network, batches(8, 3), CROSS_ENTROPY)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(nn.Linear(6, 4), [], CROSS_ENTROPY)
