"""What pruning knows of each kind of layer: one adapter for each, found by the layer's type.

Groups, costs, criteria, masking, channel pruning and rebuilding work through adapters alone. A new
kind of layer is a class that is registered, in this package or in another:

    @adapts(MyNorm)
    class MyNormAdapter(PrunableLayer):
        axes = ("out",)
        ...
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from capsprune.errors import CheckpointError, ModelError
from capsprune.tables import load_plugins

#: What is counted of a layer: its inputs and outputs, which lie on dimensions of tensors, and how
#: often it iterates, where it does.
Axis = Literal["in", "out", "iterations"]


class PrunableLayer(ABC):
    """What pruning must know of one layer whose channels can be removed.

    Costs are bilinear: a layer has weights and MACs for each pair of an output with an input that
    it sees, and parameters for each output.
    """

    #: The axes that lie on tensors. What passes channels on one by one has only "out".
    axes: ClassVar[tuple[Axis, ...]] = ("in", "out")
    #: Whether it makes channels of its own, which the rows of its weight rank.
    produces: ClassVar[bool] = False
    #: Whether each output sees one input only, its own, so that both axes are one.
    tied: ClassVar[bool] = False

    def __init__(self, layer: Any) -> None:
        """Wrap a layer, which stays as it is until `select` or `resize`."""
        self.layer = layer

    @abstractmethod
    def size(self, axis: Axis) -> int:
        """Return the channels on an axis."""

    @abstractmethod
    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the channels on one axis or both in the layer's attributes, not in its tensors."""

    @property
    def weights_per_pair(self) -> int:
        """Weights for each pair of an output with an input that it sees."""
        return 0

    @property
    def parameters_per_output(self) -> int:
        """Parameters for each output besides: biases, scales, shifts."""
        return sum(
            tensor.numel() // self.size("out")
            for key, tensor in self.tensors()
            if key != "weight" and isinstance(tensor, nn.Parameter)
        )

    def macs_per_pair(self, positions: int) -> int:
        """Return the MACs for one image of each pair.

        Args:
            positions: how often the layer is applied, as `positions` counts.
        """
        return positions * self.weights_per_pair

    def macs_of_iterations(self, positions: int) -> list[int]:
        """Return the MACs of each pair for each number of iterations, from none to all."""
        return [0, self.macs_per_pair(positions)]

    def positions(self, output: Tensor) -> int:
        """Return how often the layer was applied to one image, from its output."""
        return output.numel() // self.size("out")

    @property
    def groups(self) -> int:
        """Blocks that the axes fall into, which must stay equally large: an output sees its own."""
        return 1

    @property
    def pairs(self) -> int:
        """Pairs of an output with an input that it sees."""
        return self.size("out") * (1 if self.tied else self.size("in") // self.groups)

    def macs(self, positions: int) -> int:
        """Return the layer's MACs for one image; the argument is that of `macs_per_pair`."""
        return self.macs_per_pair(positions) * self.pairs if self.weights_per_pair else 0

    @property
    def parameters(self) -> int:
        """Parameters of the layer itself, without those of layers within."""
        weights = self.weights_per_pair * self.pairs if self.weights_per_pair else 0
        return weights + self.parameters_per_output * self.size("out")

    @property
    def weight(self) -> Tensor:
        """The weight of a layer that makes channels, with one row or more for each."""
        weight: Tensor = self.layer.weight
        return weight

    @property
    def scale(self) -> Tensor | None:
        """One trained factor for each output, [size], where the layer normalises a batch."""
        return None

    def obstacle(self, name: str) -> str | None:
        """Return why nothing can be removed from this layer, called `name`, if so."""
        return None

    # Tensors.

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and values of the layer's own parameters and buffers."""
        yield from self.layer.named_parameters(recurse=False)
        yield from self.layer.named_buffers(recurse=False)

    def dims(self, key: str, tensor: Tensor) -> Mapping[Axis, int]:
        """Return the dimension on which each axis lies in a tensor; most have outputs alone."""
        if not tensor.dim():
            return {}
        return {"out": 0, "in": 1} if self.weights_per_pair and key == "weight" else {"out": 0}

    def selected(self, chosen: Mapping[Axis, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each tensor with what stays of it, and leave the layer as it is.

        Args:
            chosen: the positions that stay on each axis, ascending; all on an axis without.

        Yields:
            Name, tensor, and a copy of its kind and memory format that shares nothing with it.
        """
        for key, tensor in self.tensors():
            part = tensor.detach()
            for axis, dim in self.dims(key, tensor).items():
                if axis in chosen:
                    # The same offsets stay in each group: the first group tells all.
                    places = chosen[axis]
                    if axis == "in" and self.groups > 1:
                        places = places[places < part.shape[dim]]
                    part = part.index_select(dim, places.to(part.device))
            if part.data_ptr() == tensor.data_ptr():
                part = part.clone()
            yield key, tensor, _like(tensor, part)

    @torch.no_grad()
    def select(self, chosen: Mapping[Axis, Tensor]) -> None:
        """Keep the chosen positions of the layer in place; the argument is that of `selected`."""
        for key, _, part in [*self.selected(chosen)]:
            self.replace(key, part)
        self.set_sizes({axis: len(places) for axis, places in chosen.items()})

    def resize(self, sizes: Mapping[Axis, int]) -> None:
        """Give the layer other numbers of channels in place; its values become undefined.

        Raises:
            CheckpointError: if the layer cannot have as many.
        """
        if min(sizes.values()) < 1:
            raise CheckpointError("has no channels")
        if any(size % self.groups for size in sizes.values()):
            raise CheckpointError(
                f"has {sizes['in']} inputs and {sizes['out']} outputs, which its {self.groups} "
                "groups do not divide"
            )
        before = {axis: self.size(axis) for axis in sizes}
        for key, tensor in [*self.tensors()]:
            shape = list(tensor.shape)
            for axis, dim in self.dims(key, tensor).items():
                if axis in sizes:  # The weight of a grouped convolution has a part of the inputs.
                    shape[dim] = sizes[axis] * shape[dim] // before[axis]
            self.replace(key, _like(tensor, tensor.detach().new_empty(shape)))
        self.set_sizes(sizes)

    def replace(self, key: str, tensor: Tensor) -> None:
        """Put another tensor in the place of one of the layer's own."""
        setattr(self.layer, key, tensor)

    # Masking.

    def channel_dim(self, output: Tensor) -> int:
        """Return the dimension on which the layer's output has its channels."""
        return 1

    def silence(self, inputs: Tensor, output: Tensor, keep: Tensor) -> Tensor:
        """Return the layer's output as if channels were not there, which become zero.

        Args:
            inputs: what the layer was applied to.
            output: what it gave.
            keep: 1 for each channel that stays, 0 for others, shaped to go on the output.
        """
        return output * keep


#: By type; each makes the adapter of a layer of that type.
_ADAPTERS: dict[type, Callable[[Any], PrunableLayer]] = {}
FactoryT = TypeVar("FactoryT", bound=Callable[[Any], PrunableLayer])


def adapts(*kinds: type[nn.Module]) -> Callable[[FactoryT], FactoryT]:
    """Return a decorator that registers an adapter for types of layers, and their subclasses.

    Args:
        kinds: types without an adapter of their own.

    Raises:
        ModelError: if a type has an adapter already.
    """

    def add(factory: FactoryT) -> FactoryT:
        for kind in kinds:
            if _ADAPTERS.setdefault(kind, factory) is not factory:
                raise ModelError(
                    f"Layers of type {kind.__qualname__} have an adapter already; register one for "
                    "a subclass."
                )
        return factory

    return add


@functools.cache
def _load() -> None:
    """Import the modules that register adapters."""
    from capsprune.pruning import capsule_layers  # noqa: F401

    load_plugins()


def adapter(layer: nn.Module) -> PrunableLayer | None:
    """Return the adapter of a layer; None for what must only pass channels on."""
    _load()
    for kind in type(layer).__mro__:
        if kind in _ADAPTERS:
            return _ADAPTERS[kind](layer)
    return None


def prunable_layers(model: nn.Module) -> dict[str, PrunableLayer]:
    """Return the adapters of all layers of a network that have any, by name.

    They come in the network's order; behind them, parameters that belong to no such layer, as
    ConvNeXt's layer scale does.
    """
    layers: dict[str, PrunableLayer] = {}
    parameters: dict[str, PrunableLayer] = {}
    for name, module in model.named_modules():
        if found := adapter(module):
            layers[name] = found
            continue
        for key, _ in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            parameters[full] = ChannelParameter(module, key, full)
    return layers | parameters


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    """Return a part of a tensor as the same kind of tensor: a parameter, channels last."""
    if tensor.dim() == 4:
        last = tensor.is_contiguous(memory_format=torch.channels_last)
        part = part.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


class Convolution(PrunableLayer):
    """A convolution, perhaps of several groups."""

    produces = True
    layer: nn.Conv2d

    def size(self, axis: Axis) -> int:
        """Return the channels on an axis."""
        return self.layer.in_channels if axis == "in" else self.layer.out_channels

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the channels on axes."""
        self.layer.in_channels = sizes.get("in", self.layer.in_channels)
        self.layer.out_channels = sizes.get("out", self.layer.out_channels)

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.layer.groups

    @property
    def weights_per_pair(self) -> int:
        """Size of the kernel."""
        return self.layer.kernel_size[0] * self.layer.kernel_size[1]


class DepthwiseConvolution(Convolution):
    """A convolution that filters each channel by itself."""

    produces = False
    tied = True

    @property
    def groups(self) -> int:
        """One: any channel can go alone."""
        return 1

    def dims(self, key: str, tensor: Tensor) -> Mapping[Axis, int]:
        """Return where the channels are, which are outputs and inputs in one."""
        return {"out": 0}

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the channels."""
        size = sizes["out"] if "out" in sizes else sizes["in"]
        self.layer.in_channels = self.layer.out_channels = self.layer.groups = size

    def resize(self, sizes: Mapping[Axis, int]) -> None:
        """Give the layer other numbers of channels; it must have as many inputs as outputs."""
        if sizes["in"] != sizes["out"]:
            raise CheckpointError(
                f"has {sizes['in']} inputs and {sizes['out']} outputs, where each channel is "
                "filtered by itself"
            )
        super().resize(sizes)


@adapts(nn.Conv2d)
def _convolution(layer: nn.Conv2d) -> Convolution:
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
    return DepthwiseConvolution(layer) if depthwise else Convolution(layer)


@adapts(nn.Linear)
class Linear(PrunableLayer):
    """A linear layer."""

    produces = True
    layer: nn.Linear

    def size(self, axis: Axis) -> int:
        """Return the features on an axis."""
        return self.layer.in_features if axis == "in" else self.layer.out_features

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the features on axes."""
        self.layer.in_features = sizes.get("in", self.layer.in_features)
        self.layer.out_features = sizes.get("out", self.layer.out_features)

    @property
    def weights_per_pair(self) -> int:
        """One weight."""
        return 1

    def channel_dim(self, output: Tensor) -> int:
        """Return the last dimension."""
        return -1


class PassingLayer(PrunableLayer):
    """Base of what passes channels on one by one, with a few values for each."""

    axes = ("out",)
    tied = True

    @property
    def parameters_per_output(self) -> int:
        """Parameters that the layer has for each channel."""
        return sum(1 for _, tensor in self.tensors() if isinstance(tensor, nn.Parameter))


@adapts(nn.BatchNorm2d)
class BatchNorm(PassingLayer):
    """A batch norm."""

    layer: nn.BatchNorm2d

    def size(self, axis: Axis) -> int:
        """Return the channels."""
        return self.layer.num_features

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the channels."""
        self.layer.num_features = sizes["out"]

    @property
    def scale(self) -> Tensor | None:
        """The norm's factor for each channel, [C]."""
        return self.layer.weight


@adapts(nn.LayerNorm)
class LayerNorm(PassingLayer):
    """A layer norm over the channels."""

    layer: nn.LayerNorm

    def size(self, axis: Axis) -> int:
        """Return the channels."""
        return self.layer.normalized_shape[-1]

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Note the channels."""
        self.layer.normalized_shape = (sizes["out"],)

    def obstacle(self, name: str) -> str | None:
        """Return a reason where more dimensions than the channels are normalised over."""
        if len(self.layer.normalized_shape) == 1:
            return None
        return f"layer '{name}' normalises over more than the channels"

    def channel_dim(self, output: Tensor) -> int:
        """Return the last dimension; the second of subclasses that take images."""
        second = (
            type(self.layer) is not nn.LayerNorm
            and output.dim() == 4
            and output.shape[1] == self.size("out")
        )
        return 1 if second else -1

    def silence(self, inputs: Tensor, output: Tensor, keep: Tensor) -> Tensor:
        """Normalise anew, by the mean and variance of the channels that stay."""
        dim, count = self.channel_dim(output), keep.sum()
        mean = (inputs * keep).sum(dim, keepdim=True) / count
        variance = ((inputs - mean).square() * keep).sum(dim, keepdim=True) / count
        output = (inputs - mean) * torch.rsqrt(variance + self.layer.eps)
        if self.layer.weight is not None:
            output = output * self.layer.weight.reshape(keep.shape)
        if self.layer.bias is not None:
            output = output + self.layer.bias.reshape(keep.shape)
        return output * keep


class ChannelParameter(PassingLayer):
    """A parameter of a module of any other kind, with one value for each channel."""

    def __init__(self, owner: nn.Module, key: str, name: str) -> None:
        """Wrap a parameter.

        Args:
            owner: the module that it belongs to.
            key: its name there.
            name: its name in the network.
        """
        super().__init__(owner)
        self._key, self._name = key, name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        parameter = getattr(self.layer, self._key)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def dim(self) -> int:
        """The dimension that has the channels.

        Raises:
            ModelError: if it is not the one dimension that has more than one position.
        """
        dims = [dim for dim, size in enumerate(self.parameter.shape) if size > 1]
        if len(dims) != 1:
            raise ModelError(
                f"Parameter '{self._name}' of shape {list(self.parameter.shape)} has not one value "
                "for each channel, so that nothing around it can be pruned; choose another "
                "backbone."
            )
        return dims[0]

    def size(self, axis: Axis) -> int:
        """Return the values."""
        return max(self.parameter.shape)

    def set_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Do nothing: there is but the parameter."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameter."""
        yield self._key, self.parameter

    def dims(self, key: str, tensor: Tensor) -> Mapping[Axis, int]:
        """Return where the channels are."""
        return {"out": self.dim}
