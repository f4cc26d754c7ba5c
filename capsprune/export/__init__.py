"""PyTorch to ONNX: the routing op as a model-local function, and the check of what was written.

Names are imported when they are first used, so that what needs only a part stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsprune.export.onnx_file import ExportReport, export_onnx
    from capsprune.export.parity import Parity, measure_parity, require_parity
    from capsprune.export.routing_op import (
        DOMAIN,
        DOMAIN_VERSION,
        OP_TYPE,
        OPSETS,
        routing_function,
        routing_model,
        translations,
    )

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "OPSETS",
    "OP_TYPE",
    "ExportReport",
    "Parity",
    "export_onnx",
    "measure_parity",
    "require_parity",
    "routing_function",
    "routing_model",
    "translations",
]

_MODULE_OF = {
    "ExportReport": "onnx_file",
    "export_onnx": "onnx_file",
    "Parity": "parity",
    "measure_parity": "parity",
    "require_parity": "parity",
    "DOMAIN": "routing_op",
    "DOMAIN_VERSION": "routing_op",
    "OPSETS": "routing_op",
    "OP_TYPE": "routing_op",
    "routing_function": "routing_op",
    "routing_model": "routing_op",
    "translations": "routing_op",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
