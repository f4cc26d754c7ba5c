from itertools import chain

import pytest
import torch
from lightning_fabric import Fabric
from torch.utils.data import Sampler

from capsprune.data.images import TensorImages
from capsprune.data.loaders import EpochSampler, FoldingBatchSampler, data_loader, set_epoch
from capsprune.errors import DataError


def numbered(count, channels=1):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 2, 2)
    return TensorImages(pixels.contiguous(), torch.arange(count))


def order(loader):
    return [labels.tolist() for _, labels in loader]


def test_batches_come_as_fetched():
    loader = data_loader(numbered(5), batch_size=2)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    images, labels = batches[1]
    assert images.shape == (2, 1, 2, 2) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [2, 3]
    assert len(loader) == 3


def test_order_hangs_on_seed_and_epoch_alone():
    first = data_loader(numbered(20), batch_size=6, shuffle=True, seed=1)
    second = data_loader(numbered(20), batch_size=6, shuffle=True, seed=1)
    seen = []
    for epoch in range(3):
        set_epoch(first, epoch)
        torch.manual_seed(epoch + 100)
        seen.append(order(first))
    assert seen[0] != seen[1] != seen[2]
    set_epoch(second, 2)
    assert order(second) == seen[2]
    assert order(data_loader(numbered(20), batch_size=6, shuffle=True, seed=2)) != seen[0]


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    order(data_loader(numbered(6), batch_size=2, shuffle=True))
    assert torch.rand(1) == expected


def test_fabric_keeps_the_epoch_and_the_order():
    fabric = Fabric(accelerator="cpu", devices=1)
    plain = data_loader(numbered(20), batch_size=6, shuffle=True)
    wrapped = fabric.setup_dataloaders(data_loader(numbered(20), batch_size=6, shuffle=True))
    for epoch in (5, 0, 7):
        set_epoch(plain, epoch)
        set_epoch(wrapped, epoch)
        assert order(wrapped) == order(plain)


@pytest.mark.parametrize("count", range(2, 14))
@pytest.mark.parametrize("batch_size", [2, 3, 6])
@pytest.mark.parametrize("drop_last", [False, True])
def test_no_batch_of_one_when_training(count, batch_size, drop_last):
    if drop_last and count < batch_size:
        return
    loader = data_loader(numbered(count), batch_size=batch_size, shuffle=True, drop_last=drop_last)
    batches = order(loader)
    assert len(batches) == len(loader)
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2 and max(sizes) <= batch_size + 1
    if drop_last:
        assert sizes == [batch_size] * (count // batch_size)
    else:
        assert sorted(chain(*batches)) == list(range(count))


@pytest.mark.parametrize(("count", "world"), [(10, 3), (9, 3), (2, 4), (7, 2)])
def test_processes_share_the_images(count, world):
    samplers = [
        EpochSampler(count, shuffle=True, seed=0, rank=rank, world_size=world)
        for rank in range(world)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert set(chain(*shares)) == set(range(count))
    ordered = [
        EpochSampler(count, shuffle=False, seed=0, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert [len(list(sampler)) for sampler in ordered] == [len(sampler) for sampler in ordered]
    assert sorted(chain(*ordered)) == list(range(count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "Batch size 0 is too small .* use 1 or more"),
        ({"batch_size": 1, "shuffle": True}, "batch norm cannot train.*use 2 or more"),
        ({"batch_size": 8, "drop_last": True}, "too few for a batch, which takes 8: add images"),
        ({"batch_size": 8, "shuffle": True, "world_size": 5}, "too few.*or make the batch size"),
    ],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(DataError, match=message):
        data_loader(numbered(5), **arguments)


def test_batch_sampler_follows_torch_so_that_others_can_rebuild_it():
    class Fixed(Sampler):
        def __iter__(self):
            return iter([3, 1, 2])

        def __len__(self):
            return 3

    assert list(FoldingBatchSampler(Fixed(), batch_size=2, drop_last=False)) == [[3, 1, 2]]
