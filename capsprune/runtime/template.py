"""One ONNX graph for many networks that differ by their numbers of channels alone.

An export takes seconds, and exports of pruned networks of one architecture have the same nodes:
what differs are the weights, which the graph holds under the names that PyTorch has for them, and a
few whole numbers in the attributes of nodes, such as the groups of a depthwise convolution, or the
shape that a feature map is flattened to. Which numbers those are shows where two exports are
compared; each is proportional to a size of some weight, of the nearest one in the graph that
explains all exports seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

#: Attributes that hold whole numbers, by their type: the field.
_FIELDS: dict[int, str] = {AttributeProto.INT: "i", AttributeProto.INTS: "ints"}
_WHOLE = (TensorProto.INT64, TensorProto.INT32)

Shapes = Mapping[str, tuple[int, ...]]


class TemplateError(Exception):
    """A graph cannot be made for this network; it must be exported."""


class _Place(NamedTuple):
    """Where a whole number stands."""

    node: int
    attribute: str
    #: Which of the attribute's numbers.
    position: int


class _Size(NamedTuple):
    """A size of a weight."""

    weight: str
    axis: int


@dataclass(frozen=True)
class _Rule:
    """A number is this size of a weight times a fraction."""

    size: _Size
    numerator: int
    denominator: int

    def number(self, shapes: Shapes) -> int:
        """Return the number for weights of these shapes.

        Raises:
            TemplateError: if it would not be whole.
        """
        number, rest = divmod(
            shapes[self.size.weight][self.size.axis] * self.numerator, self.denominator
        )
        if rest:
            raise TemplateError(f"{self.size.weight} has a size that explains no whole number.")
        return number


class _Sample(NamedTuple):
    """What an export tells of the numbers in a graph."""

    numbers: dict[_Place, int]
    shapes: Shapes


class GraphTemplate:
    """Makes ONNX graphs of networks, having seen exports of others of the same architecture."""

    def __init__(self) -> None:
        """Begin without exports."""
        self._graph: onnx.ModelProto | None = None
        self._weights: list[str] = []
        self._samples: list[_Sample] = []
        self._rules: dict[_Place, _Rule] = {}
        self._same = True

    @property
    def ready(self) -> bool:
        """Whether two exports were compared, so that graphs can be made."""
        return self._same and len(self._samples) > 1

    def learn(self, model: onnx.ModelProto, weights: Mapping[str, Tensor]) -> None:
        """Compare an export with those before.

        Args:
            model: the export; it may be kept and must not be changed.
            weights: of the network that it is of, by their names in the graph; weights that the
                graph lacks do no harm.

        Raises:
            TemplateError: if it differs by more than numbers that follow from sizes of weights. No
                graph can be made from then on.
        """
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        sample = _Sample(dict(_numbers(model.graph.node)), shapes)
        if self._graph is None:
            self._weights = [t.name for t in model.graph.initializer if t.name in weights]
            self._graph = _without(model, set(self._weights))
            self._samples.append(sample)
            return
        try:
            if _skeleton(_without(model, set(self._weights))) != _skeleton(self._graph):
                raise TemplateError("Exports differ by more than numbers of channels.")
            self._samples.append(sample)
            self._rules = self._explained()
        except TemplateError:
            self._same = False
            raise

    def fill(self, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
        """Return the graph of a network.

        Whether its numbers fit shows where the graph is checked, or a session opened.

        Args:
            weights: of the network, by their names in the graph.

        Raises:
            TemplateError: if it needs a number that the exports seen do not explain.
        """
        if not self.ready or self._graph is None or not weights.keys() >= set(self._weights):
            raise TemplateError("The exports seen are not of such a network.")
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        numbers = {place: rule.number(shapes) for place, rule in self._rules.items()}
        filled = onnx.ModelProto()
        filled.CopyFrom(self._graph)
        for place, number in numbers.items():
            _write(filled.graph.node[place.node], place, number)
        for name in self._weights:
            values = weights[name].detach().cpu().numpy()
            # Written in place: a head may have hundreds of megabytes, and to append copies them.
            filled.graph.initializer.add(
                name=name,
                dims=values.shape,
                data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
                raw_data=values.tobytes(),
            )
        return filled

    def _explained(self) -> dict[_Place, _Rule]:
        """Find the rule of each number that is not the same in all exports.

        Raises:
            TemplateError: if one has none.
        """
        assert self._graph is not None
        first = self._samples[0]
        varying = [
            place
            for place, number in first.numbers.items()
            if any(sample.numbers[place] != number for sample in self._samples)
        ]
        near = _Nearness(self._graph.graph.node, set(self._weights))
        rules = {}
        for place in varying:
            sizes = (
                _Size(weight, axis)
                for weight in near.weights(place.node)
                for axis in range(len(first.shapes[weight]))
            )
            found = next((size for size in sizes if self._proportional(place, size)), None)
            if found is None:
                raise TemplateError(
                    f"A number of {self._graph.graph.node[place.node].op_type} follows from no "
                    "weight."
                )
            rules[place] = _Rule(
                found, first.numbers[place], first.shapes[found.weight][found.axis]
            )
        return rules

    def _proportional(self, place: _Place, size: _Size) -> bool:
        first = self._samples[0]
        number, of_weight = first.numbers[place], first.shapes[size.weight][size.axis]
        return of_weight > 0 and all(
            sample.numbers[place] * of_weight == number * sample.shapes[size.weight][size.axis]
            for sample in self._samples
        )


class _Nearness:
    """Which weights are near a node: what it computes with, down the graph and up from there."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], weights: set[str]) -> None:
        self._nodes, self._weights = nodes, weights
        self._maker = {name: i for i, node in enumerate(nodes) for name in node.output}
        self._users: dict[str, list[int]] = {}
        for i, node in enumerate(nodes):
            for name in node.input:
                self._users.setdefault(name, []).append(i)

    def weights(self, start: int) -> Iterator[str]:
        """Yield weights, the nearest first."""
        # Down is left once and not taken again: what is used everywhere would join everything.
        waiting, seen = deque([(start, True)]), {(start, True)}
        given: set[str] = set()
        while waiting:
            i, down = waiting.popleft()
            node = self._nodes[i]
            for name in node.input:
                if name in self._weights and name not in given:
                    given.add(name)
                    yield name
            makers = [self._maker[name] for name in node.input if name in self._maker]
            users = [user for name in node.output for user in self._users.get(name, ())]
            further = [(maker, False) for maker in makers]
            further += [(user, True) for user in users] if down else []
            for state in further:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)


def _numbers(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[_Place, int]]:
    """Yield the whole numbers in the attributes of nodes."""
    for i, node in enumerate(nodes):
        for attribute in node.attribute:
            for position, number in enumerate(_whole(attribute) or ()):
                yield _Place(i, attribute.name, position), number


def _whole(attribute: AttributeProto) -> list[int] | None:
    """Return the whole numbers of an attribute; None if it holds something else."""
    if attribute.type in _FIELDS:
        held: Any = getattr(attribute, _FIELDS[attribute.type])
        return [held] if attribute.type == AttributeProto.INT else list(held)
    if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in _WHOLE:
        numbers: list[int] = numpy_helper.to_array(attribute.t).ravel().tolist()
        return numbers
    return None


def _write(node: onnx.NodeProto, place: _Place, number: int) -> None:
    attribute = next(a for a in node.attribute if a.name == place.attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = number
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[place.position] = number
    else:
        values = numpy_helper.to_array(attribute.t).copy()
        values.ravel()[place.position] = number
        attribute.t.CopyFrom(numpy_helper.from_array(values))


def _without(model: onnx.ModelProto, weights: set[str]) -> onnx.ModelProto:
    """Copy a model without weights, and without the shapes between its nodes."""
    copied = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    graph = model.graph
    copied.graph.name = graph.name
    copied.graph.input.extend(graph.input)
    copied.graph.output.extend(graph.output)
    for node in graph.node:
        copied.graph.node.add().CopyFrom(node)
        # The exporter's notes are long, and name shapes.
        copied.graph.node[-1].ClearField("metadata_props")
        copied.graph.node[-1].ClearField("doc_string")
    copied.graph.initializer.extend(t for t in graph.initializer if t.name not in weights)
    return copied


def _skeleton(model: onnx.ModelProto) -> bytes:
    """Return what must be the same in two graphs: all but the whole numbers in attributes."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for item in (*bare.graph.input, *bare.graph.output, *bare.graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for node in bare.graph.node:
        for attribute in node.attribute:
            numbers = _whole(attribute)
            if numbers is not None:
                shape = list(attribute.t.dims)
                attribute.CopyFrom(
                    onnx.helper.make_attribute(
                        attribute.name, [attribute.type, len(numbers), *shape]
                    )
                )
    return bare.SerializeToString(deterministic=True)
