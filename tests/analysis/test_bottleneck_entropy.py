import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.analysis.entropy import BottleneckEntropy


def entropy_slowly(features, labels):
    """Bits and active share by the definition, a unit and a class at a time."""
    on = (features.reshape(len(features), -1) > 0).astype(float)
    bits = []
    for label in sorted(set(labels.tolist())):
        for unit in on[labels == label].T:
            p = unit.mean()
            bits.append(-sum(q * np.log2(q) for q in (p, 1 - p) if q > 0))
    return np.mean(bits), on.mean()


@settings(max_examples=40)
@given(
    images=st.integers(1, 30),
    classes=st.integers(1, 5),
    channels=st.integers(1, 4),
    side=st.integers(1, 3),
    batch=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_batches_add_up_to_the_definition(images, classes, channels, side, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, channels, side, side, generator=generator).relu()
    labels = torch.randint(classes, (images,), generator=generator)
    entropy = BottleneckEntropy(classes)
    for some, some_labels in zip(features.split(batch), labels.split(batch), strict=True):
        entropy.update(some, some_labels)
    bits, share = entropy_slowly(features.numpy(), labels.numpy())
    assert entropy.bits == pytest.approx(bits, abs=1e-9)
    assert entropy.active_share == pytest.approx(share, abs=1e-9)


def test_a_unit_that_tells_the_class_has_no_entropy_and_a_coin_has_one_bit():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    telling = labels.float().view(-1, 1)
    coin = torch.tensor([0.0, 3.0] * 4).view(-1, 1)
    for unit, bits in ((telling, 0.0), (coin, 1.0), (-coin, 0.0)):
        entropy = BottleneckEntropy(3)
        entropy.update(unit, labels)
        assert entropy.bits == pytest.approx(bits)


def test_memory_order_changes_nothing():
    features = torch.randn(16, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 4
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        entropy = BottleneckEntropy(4)
        entropy.update(features.contiguous(memory_format=memory), labels)
        found.append(entropy.bits)
    assert found[0] == found[1]


def test_no_images_and_other_units_are_refused():
    entropy = BottleneckEntropy(2)
    with pytest.raises(ValueError, match="no images"):
        _ = entropy.bits
    entropy.update(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 units"):
        entropy.update(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
