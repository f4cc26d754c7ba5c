"""capsprune: prune a backbone, put a capsule head on it, export it to ONNX, profile it.

The commands are functions, each with the options of its command:

    >>> import capsprune
    >>> pruned = capsprune.prune(model="resnet50", flops=0.5)  # doctest: +SKIP
    >>> caps = capsprune.attach_capsules()  # doctest: +SKIP
    >>> slim = capsprune.prune_capsules()  # doctest: +SKIP
    >>> exported = capsprune.export_onnx()  # doctest: +SKIP
    >>> session = capsprune.session(exported.summary.path)  # doctest: +SKIP

Names are imported when they are first used: `import capsprune` alone loads nothing.
"""

from typing import TYPE_CHECKING

from capsprune.lazy import lazy_names
from capsprune.version import __version__

if TYPE_CHECKING:
    from capsprune.api import (
        analyse,
        attach_capsules,
        export_onnx,
        profile,
        prune,
        prune_capsules,
        train,
    )
    from capsprune.checkpoint import load_checkpoint
    from capsprune.runtime.sessions import op_library, session

__all__ = [
    "__version__",
    "analyse",
    "attach_capsules",
    "export_onnx",
    "load_checkpoint",
    "op_library",
    "profile",
    "prune",
    "prune_capsules",
    "session",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "analyse": "api",
        "attach_capsules": "api",
        "export_onnx": "api",
        "load_checkpoint": "checkpoint",
        "op_library": "runtime.sessions",
        "profile": "api",
        "prune": "api",
        "prune_capsules": "api",
        "session": "runtime.sessions",
        "train": "api",
    },
)
