"""How many bytes the exported file of a pruned network takes, computed from channel counts.

An ONNX file is its graph and its weights. Pruning leaves the graph as it is, but that the lengths
and shapes written in it become shorter, by some bytes in a hundred thousand: its size in the file
of the unpruned network bounds it from above. The weights in the file are not the parameters: a
batch norm behind a convolution is folded into it, and leaves a bias for each channel. Which tensor
is there, and of how many bytes, is read off one export of the unpruned network; how it shrinks
follows from the layer it belongs to.

What is computed is never less than the file takes, and at most a few hundred bytes more, but for
indices of capsules (8 bytes each), which an unpruned network of spatial capsules does without, and
for the body of a routing, which goes with the last but one iteration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from capsprune.pruning.cost import CostModel
from capsprune.pruning.layers import prunable_layers

#: Bytes by unit; the longest names first, so that each is found as a whole.
_UNITS = {
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"k": 10**3, "m": 10**6, "g": 10**9, "b": 1, "": 1},
}


def parse_bytes(text: str) -> int:
    """Read a number of bytes, such as "4MB", "1.5 MiB", "500kB" or "123456".

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise ValueError("it should be a number of bytes, such as 4MB, 500kB, 2MiB or 123456")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(number: float) -> str:
    """Return a number of bytes with a unit, such as "4.25 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f} bytes"


#: Bytes of a value.
_VALUE = 4
#: Bytes of the node that selects by indices, with all its names, at most.
_SELECTION = 512


@dataclass(frozen=True)
class FileContent:
    """What the exported file of one network holds."""

    #: All of the file but its weights: the graph, functions, names, metadata.
    graph: int
    #: Bytes of each weight by its name in the network, such as `conv1.weight`.
    weights: Mapping[str, int]


@dataclass(frozen=True)
class FileSize:
    """Bytes of the exported file of every pruned shape of one network."""

    #: What no shape does without: the graph, and weights that no layer's channels change.
    fixed: int
    #: A cost model that counts bytes in the place of parameters.
    _cost: CostModel

    @classmethod
    def build(cls, content: FileContent, model: nn.Module, cost: CostModel) -> FileSize:
        """Find how the weights in a file follow from the channels kept.

        Args:
            content: what the file of the unpruned network holds.
            model: the unpruned network.
            cost: its cost model.
        """
        layers = prunable_layers(model)
        order = {name: index for index, name in enumerate(layers)}
        per_pair, per_output = np.zeros(len(layers)), np.zeros(len(layers))
        unseen = {name for name, layer in layers.items() if layer.weights_per_pair}
        rest: list[int] = []
        for tensor, size in content.weights.items():
            name, key = _layer_of(tensor, order)
            if name is None:
                rest.append(size)
            elif name in unseen and key == "weight" and size % layers[name].pairs == 0:
                unseen.remove(name)
                per_pair[order[name]] = size // layers[name].pairs
            elif size % layers[name].size("out") == 0:
                per_output[order[name]] += size // layers[name].size("out")
            else:
                rest.append(size)
        # The exporter gives a weight that it transposes a name of its own.
        for name in sorted(unseen, key=order.__getitem__):
            size = _VALUE * layers[name].weights_per_pair * layers[name].pairs
            if size in rest:
                rest.remove(size)
                per_pair[order[name]] = _VALUE * layers[name].weights_per_pair
        for name, layer in layers.items():
            for key, values in layer.tensors():
                indices = not values.is_floating_point() and values.numel() == layer.size("out")
                # The unpruned network takes all, and its file needs no indices to say so.
                if indices and f"{name}.{key}" not in content.weights:
                    per_output[order[name]] += values.element_size()
                    rest.append(_SELECTION)
        counted = replace(cost, weights_per_pair=per_pair, parameters_per_output=per_output)
        return cls(content.graph + sum(rest), counted)

    def bytes(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of the file, [...], for units kept [..., G]: exact, or a little more."""
        return self._cost.parameters(kept) + self.fixed


def _layer_of(tensor: str, layers: Mapping[str, int]) -> tuple[str | None, str]:
    """Return the layer that a weight belongs to, None for none, and the weight's name in it."""
    if tensor in layers:  # a parameter that is a layer of its own
        return tensor, "weight"
    name, _, key = tensor.rpartition(".")
    return (name, key) if name in layers else (None, key)
