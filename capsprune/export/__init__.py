"""PyTorch to ONNX: the ops of heads as model-local functions, and the check of what was written.

Names are imported when they are first used, so that what needs only a part stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.lazy import lazy_names

if TYPE_CHECKING:
    from capsprune.export.onnx_file import ExportReport, file_content, translations, write_onnx
    from capsprune.export.parity import Parity, measure_parity, require_parity

__all__ = [
    "ExportReport",
    "Parity",
    "file_content",
    "measure_parity",
    "require_parity",
    "translations",
    "write_onnx",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ExportReport": "onnx_file",
        "Parity": "parity",
        "write_onnx": "onnx_file",
        "file_content": "onnx_file",
        "measure_parity": "parity",
        "require_parity": "parity",
        "translations": "onnx_file",
    },
)
