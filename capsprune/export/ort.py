"""ONNX Runtime, imported without the warnings that it prints when it finds no GPU."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

#: ONNX Runtime's severity "error": what is logged below it is of no use to a user.
ERROR_SEVERITY = 3


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discard what native code writes to the process's standard error meanwhile."""
    with contextlib.ExitStack() as cleanup:
        try:
            kept = os.dup(2)
        except OSError:  # The process has no standard error.
            yield
            return
        cleanup.callback(os.close, kept)
        if sys.stderr is not None:
            sys.stderr.flush()
        sink = os.open(os.devnull, os.O_WRONLY)
        cleanup.callback(os.close, sink)
        os.dup2(sink, 2)
        cleanup.callback(os.dup2, kept, 2)
        yield


# ONNX Runtime looks for GPUs while it is imported and heeds no logging level until then.
with quiet_stderr():
    import onnxruntime
onnxruntime.set_default_logger_severity(ERROR_SEVERITY)

__all__ = ["ERROR_SEVERITY", "onnxruntime", "quiet_stderr"]
