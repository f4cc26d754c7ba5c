"""What heads add to ONNX: operators of one domain, each with a body of standard operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capsprune.errors import ExportError

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

#: Domain and version of the operators.
DOMAIN = "capsprune"
DOMAIN_VERSION = 1
#: The standard opsets that bodies, and what PyTorch's exporter makes, can be written for.
OPSETS = range(18, 24)
#: Of the files written; the first that has opset 23, and what ONNX Runtime 1.22 can read.
IR_VERSION = 10


@dataclass(frozen=True)
class OnnxOperator:
    """An operator of `DOMAIN`, which stands for one of PyTorch's registered operators."""

    op_type: str
    #: As `torch.ops` has it: `torch.ops.namespace.name.default`.
    target: Any
    #: Called by PyTorch's exporter with the target's arguments: makes one node, or the same in
    #: standard operators.
    node: Callable[..., Any]
    standard: Callable[..., Any]
    #: Writes the body of a node, in standard operators of an opset. Nodes with the same body share
    #: one function. Names of nodes in the body begin with `op_type/`.
    function: Callable[[NodeProto, int], FunctionProto]


def check_opset(opset: int) -> None:
    """Refuse an opset that no file can be written for.

    Raises:
        ExportError: if the opset is not in `OPSETS`.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"ONNX opset {opset} is not supported; give one from {OPSETS[0]} to {OPSETS[-1]}."
        )
