"""ONNX Runtime sessions, meters, and the profile of exported networks.

Names are imported when they are first used: importing this package alone is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsprune.runtime.profile import Measurement, profile_variants
    from capsprune.runtime.sessions import op_library, resolve_provider, session

__all__ = ["Measurement", "op_library", "profile_variants", "resolve_provider", "session"]

_MODULE_OF = {
    "Measurement": "profile",
    "op_library": "sessions",
    "profile_variants": "profile",
    "resolve_provider": "sessions",
    "session": "sessions",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
