from __future__ import annotations

import pytest
import torch
from prunables import Prunable, prunable, ready, tiny_prunable
from torch import nn


@pytest.fixture(scope="session")
def make_prunable():
    """Make, once each, a backbone ready for pruning; on the device "meta" it has no values."""
    made: dict[tuple[str, int, str], Prunable] = {}

    def make(name: str, size: int = 32, device: str = "cpu") -> Prunable:
        key = (name, size, device)
        if key not in made:
            made[key] = prunable(*key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_flat():
    """Make a network as VGG is: linear layers behind a flatten of several positions."""

    def make() -> Prunable:
        torch.manual_seed(0)
        layers = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 10, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()),
            *(nn.Linear(90, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 4)),
        )
        return ready(layers, "11", 12)

    return make


@pytest.fixture
def tiny() -> Prunable:
    """A tiny network that the test may change."""
    return tiny_prunable()


@pytest.fixture(scope="session")
def shared_tiny() -> Prunable:
    """A tiny network that no test changes."""
    return tiny_prunable()
