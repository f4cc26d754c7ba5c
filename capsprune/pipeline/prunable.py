"""A network, and what every stage that prunes it needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from capsprune.backbones.registry import backbone
from capsprune.pruning.cost import CostModel
from capsprune.pruning.groups import Dependencies, find_groups


@dataclass(frozen=True)
class Prunable:
    """An unpruned backbone with its groups and its costs."""

    #: The backbone's name.
    name: str
    model: nn.Module
    #: Pixels a side.
    image_size: int
    dependencies: Dependencies
    cost: CostModel

    @classmethod
    def of(cls, name: str, model: nn.Module, image_size: int) -> Prunable:
        """Find the groups and build the cost model.

        Args:
            name: the backbone's.
            model: the backbone, unpruned.
            image_size: pixels a side.

        Raises:
            ModelError: if its channels cannot be removed.
        """
        dependencies = find_groups(
            model, classifier=backbone(name).classifier, image_size=image_size
        )
        cost = CostModel.build(model, dependencies, image_size)
        return cls(name, model, image_size, dependencies, cost)
