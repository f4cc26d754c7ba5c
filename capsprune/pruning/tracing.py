"""Help torch-pruning to trace networks that shuffle channels, and layers that it does not know.

ShuffleNetV2 splits its channels into halves, joins them and shuffles. torch-pruning does not follow
a channel through that. A channel of one half also cannot go alone: the halves must stay equally
large in every unit of a stage, each of which halves another order of the channels. So what enters
and leaves a unit stays whole, and only what lies between is pruned: nearly all of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capsprune.pruning.layers import PrunableLayer, adapter

if TYPE_CHECKING:
    from torchvision.models.shufflenetv2 import InvertedResidual

_REASON = "its channels are split into halves and shuffled, which must stay equally large"
_NAME = "capsprune_barrier"


@contextmanager
def barriers_for_shuffles(model: nn.Module) -> Iterator[dict[int, str]]:
    """Put a 1 x 1 convolution in the place of each split and shuffle while a network is traced.

    Dependencies end at a convolution, so they end there too.

    Args:
        model: the network; it comes back as it was.

    Yields:
        By identity of each such convolution, why the channels that reach it must stay.
    """
    from torchvision.models.shufflenetv2 import InvertedResidual

    barriers: dict[int, str] = {}
    units = [module for module in model.modules() if isinstance(module, InvertedResidual)]
    try:
        for unit in units:
            device = next(unit.parameters()).device
            half = unit.branch2[5].out_channels
            # With stride 2 both branches see all channels.
            splits = [
                nn.Conv2d(2 * half, half, 1, device=device) for _ in range(2) if unit.stride == 1
            ]
            shuffle = nn.Conv2d(2 * half, 2 * half, 1, device=device)
            added = nn.ModuleList([*splits, shuffle])
            barriers |= {id(conv): _REASON for conv in added}
            unit.add_module(_NAME, added)
            unit.forward = _traced(unit, splits, shuffle)
        yield barriers
    finally:
        for unit in units:
            unit.__dict__.pop("forward", None)
            if hasattr(unit, _NAME):
                delattr(unit, _NAME)


def _traced(
    unit: InvertedResidual, splits: list[nn.Conv2d], shuffle: nn.Conv2d
) -> Callable[[Tensor], Tensor]:
    """Return a unit's forward pass with barriers instead of splitting and shuffling."""

    def forward(x: Tensor) -> Tensor:
        left, right = (split(x) for split in splits) if splits else (x, x)
        joined = torch.cat((unit.branch1(left), unit.branch2(right)), dim=1)
        return shuffle(joined)

    return forward


def pruners(layers: Iterable[PrunableLayer]) -> dict[type[nn.Module], Any]:
    """Return what torch-pruning must be given to follow channels through kinds that it lacks.

    Args:
        layers: of the network.

    Returns:
        By type of layer, an object that says how many channels there are. Nothing is removed by it.
    """
    from torch_pruning import ops

    unknown = {
        type(layer.layer): layer
        for layer in layers
        if adapter(layer.layer) and ops.module2type(layer.layer) == ops.OPTYPE.ELEMENTWISE
    }
    return {kind: _pruner(layer.axes) for kind, layer in unknown.items()}


def _pruner(axes: tuple[str, ...]) -> Any:
    from torch_pruning.pruner.function import BasePruningFunc

    class Passing(BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            raise NotImplementedError  # Adapters remove channels.

        # What comes in goes out: torch-pruning knows it by one function for both.
        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: nn.Module) -> int:
            return _adapter(layer).size("out")

        get_in_channels = get_out_channels

    class Producing(Passing):
        def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            raise NotImplementedError

        def get_in_channels(self, layer: nn.Module) -> int:
            return _adapter(layer).size("in")

    return Producing() if "in" in axes else Passing()


def _adapter(layer: nn.Module) -> PrunableLayer:
    found = adapter(layer)
    assert found is not None
    return found
