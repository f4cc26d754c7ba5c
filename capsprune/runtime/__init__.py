"""ONNX Runtime sessions, meters, and the profile of exported networks.

Names are imported when they are first used: importing this package alone is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.lazy import lazy_names

if TYPE_CHECKING:
    from capsprune.runtime.profile import Measurement, Place, Timing, profile_variants
    from capsprune.runtime.sessions import op_library, resolve_provider, session

__all__ = [
    "Measurement",
    "Place",
    "Timing",
    "op_library",
    "profile_variants",
    "resolve_provider",
    "session",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Measurement": "profile",
        "Place": "profile",
        "Timing": "profile",
        "op_library": "sessions",
        "profile_variants": "profile",
        "resolve_provider": "sessions",
        "session": "sessions",
    },
)
