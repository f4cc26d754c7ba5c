from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_net import TinyNet
from torch import Tensor, nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.pruning.cost import CostModel
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import Dependencies, find_groups


@dataclass(frozen=True)
class Prunable:
    """A network and what pruning needs to know of it."""

    model: nn.Module
    dependencies: Dependencies
    cost: CostModel
    size: int

    @property
    def rankings(self) -> list[Tensor]:
        return l1_ranking(self.model, self.dependencies)

    def images(self, count: int = 2, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, self.size, self.size, generator=generator)

    def drawn(self, seed: int, max_rate: float = 0.8) -> np.ndarray:
        rates = np.random.default_rng(seed).uniform(0, max_rate, len(self.dependencies.groups))
        return np.maximum(
            1, self.dependencies.channels - np.floor(rates * self.cost.channels)
        ).astype(np.int64)


def distinctive(model: nn.Module) -> nn.Module:
    """Give every batch norm values that tell its channels apart, as training would."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
                (module.running_mean, -0.2),
                (module.running_var, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.eval()


def prunable(name: str, size: int, device: str = "cpu") -> Prunable:
    torch.manual_seed(0)
    with torch.device(device):
        model = build_backbone(name, 10, **backbone_arguments(name, size)).eval()
        dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=size)
        cost = CostModel.build(model, dependencies, size)
    if device == "cpu":
        distinctive(model)
    return Prunable(model, dependencies, cost, size)


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


def ready(model: nn.Module, classifier: str, size: int) -> Prunable:
    model = distinctive(model)
    dependencies = find_groups(model, classifier=classifier, image_size=size)
    return Prunable(model, dependencies, CostModel.build(model, dependencies, size), size)


def tiny_prunable() -> Prunable:
    torch.manual_seed(0)
    return ready(TinyNet(), "fc", 12)


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
