"""Networks for the tests of pruning.

They stand in a module of their own name, which processes that a test starts can import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.pruning.cost import CostModel
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import Dependencies, find_groups


class TinyNet(nn.Module):
    """Three convolutions, two of which are joined by an addition, so that they share a group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.outer = nn.Conv2d(24, 16, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = x + self.bn3(self.outer(torch.relu(self.bn2(self.inner(x)))))
        return self.fc(x.mean((2, 3)))


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


def ready(model: nn.Module, classifier: str, size: int) -> Prunable:
    model = distinctive(model)
    dependencies = find_groups(model, classifier=classifier, image_size=size)
    return Prunable(model, dependencies, CostModel.build(model, dependencies, size), size)


def tiny_prunable() -> Prunable:
    torch.manual_seed(0)
    return ready(TinyNet(), "fc", 12)


class JoinedTrunk(nn.Module):
    """A trunk whose feature map is made by two convolutions of a few channels each."""

    def __init__(self, first: int, second: int, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, stride=stride)
        self.left = nn.Conv2d(6, first, 3, padding=1)
        self.norm = nn.BatchNorm2d(first)
        self.right = nn.Conv2d(6, second, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        return torch.relu(torch.cat((self.norm(self.left(x)), self.right(x)), dim=1))


def capsule_network(trunk: nn.Module, size: int, **head: Any) -> CapsuleNetwork:
    """Put capsules on a trunk whose channels can be told apart."""
    features = trunk_output(trunk, size)
    network = CapsuleNetwork(
        trunk,
        channels=features.channels,
        feature_size=features.size,
        **{"classes": 3, **head},
    )
    distinctive(network)
    return network


def random_order(dependencies: Dependencies, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator) for count in dependencies.channels]


def masks_of(order: list[Tensor], kept: np.ndarray) -> list[Tensor]:
    masks = [torch.zeros(len(ranking), dtype=torch.bool) for ranking in order]
    for mask, ranking, count in zip(masks, order, kept, strict=True):
        mask[ranking[: int(count)]] = True
    return masks
