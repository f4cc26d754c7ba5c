"""Ctrl-C at any moment of a command: one sentence and the end.

Python raises KeyboardInterrupt wherever it is. Within an import that is lost or garbled: libraries
catch it, or call it a reason why something of theirs cannot be loaded. Nothing is at stake in an
import, so the process ends there and then; what it was writing is written anew by the next one, as
after a kill. The same holds before the work begins, and for whoever presses Ctrl-C again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

SENTENCE = "Interrupted; the same command goes on from where it stopped."

_IMPORTING = "<frozen importlib._bootstrap>"


class _State:
    #: Whether the command itself has begun, which turns KeyboardInterrupt into the sentence.
    working = False
    interrupted = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """See to Ctrl-C while the block lasts, unless whoever started us wants it otherwise."""
    _State.working = _State.interrupted = False
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # Only the first thread may.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt while the block lasts, outside of imports."""
    _State.working = True
    try:
        yield
    finally:
        _State.working = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _State.working or _State.interrupted or _is_importing(frame):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")  # shows the cursor, which a progress bar hides
        os.write(2, f"Error: {SENTENCE}\n".encode())
        os._exit(2)
    _State.interrupted = True
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
