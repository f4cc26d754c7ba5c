"""Names in an ONNX file that tell which part of the network a node and its outputs belong to."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping

import onnx
from onnx import AttributeProto

#: Key of the metadata of a file that lists its parts.
PARTS = "parts"
#: Where PyTorch's exporter notes the modules that a node comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_part(model: onnx.ModelProto, part_of: Callable[[str], str | None]) -> list[str]:
    """Put the part of the network before the names of nodes, and of what they compute: `part/name`.

    A runtime that joins nodes, or lays their data out anew, names what it makes after one of them:
    so a record of its work tells which part took how long.

    Args:
        model: as PyTorch exported it, with its notes; inputs, outputs and weights keep their names.
        part_of: gives the part of a module by its name, or None where it is of none. A node of no
            part counts to that of what it takes.

    Returns:
        The parts, in the order of their first nodes.
    """
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    part_by_value: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:
        before = (part_by_value[name] for name in node.input if name in part_by_value)
        part = _part_of(node, part_of) or next(before, None)
        if part is None:
            continue
        node.name = f"{part}/{node.name}"
        part_by_value |= dict.fromkeys(node.output, part)
        renamed |= {name: f"{part}/{name}" for name in node.output if name not in kept}
    _rename(graph.node, renamed)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    return list(dict.fromkeys(part_by_value.values()))


def read_parts(metadata: Mapping[str, str]) -> list[str]:
    """Return the parts that a file names; none if it was written before files named any.

    Args:
        metadata: of the file.
    """
    try:
        parts = json.loads(metadata[PARTS])
    except (KeyError, ValueError):
        return []
    known = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    return parts if known else []


def _part_of(node: onnx.NodeProto, part_of: Callable[[str], str | None]) -> str | None:
    for note in node.metadata_props:
        if note.key == _SCOPES:
            scopes = ast.literal_eval(note.value)
            # The last one is the node's own.
            return next((part for scope in scopes[-2::-1] if (part := part_of(scope))), None)
    return None


def _rename(nodes: Iterable[onnx.NodeProto], renamed: Mapping[str, str]) -> None:
    """Rename values where they are made and used, in the graphs inside of nodes too."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rename(attribute.g.node, renamed)
