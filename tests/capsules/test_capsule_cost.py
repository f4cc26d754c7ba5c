import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsprune.capsules.cost import routing_macs
from capsprune.capsules.primary import DensePrimaryCaps
from capsprune.pruning.cost import count_macs


@settings(max_examples=10)
@given(channels=st.integers(4, 20), size=st.integers(1, 4), d1=st.integers(1, 4))
def test_primary_caps_cost_what_fvcore_counts(channels, size, d1):
    layer = DensePrimaryCaps(channels, size, d1)
    counted = FlopCountAnalysis(layer, torch.zeros(1, channels, size, size))
    counted.unsupported_ops_warnings(False)
    network = nn.Sequential(nn.Conv2d(3, channels, 1), layer)
    assert count_macs(network, size)["1.conv"] == counted.by_operator()["conv"]


def test_routing_cost_by_hand():
    # 2 x 3 votes of 4 x 5; one weighted sum of 5 values each; then agreement and sum twice more.
    # A single iteration is the product of 3 x 4 values with a matrix of 3 x 4 by 2 x 5.
    assert routing_macs(capsules=3, classes=2, d1=4, d2=5, iterations=1) == 12 * 10
    assert routing_macs(capsules=3, classes=2, d1=4, d2=5, iterations=3) == 6 * 20 + 5 * 6 * 5
