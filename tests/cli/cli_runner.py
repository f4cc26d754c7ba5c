"""Runs the command line inside the test process, in a folder of its own."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from capsprune.__main__ import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(*arguments: object, folder: Path) -> Outcome:
    """Run the command line in this process, in a folder of its own."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["capsprune", *map(str, arguments)]
    code = 0
    with (
        patch.object(sys, "argv", argv),
        _inside(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


#: The least training that still runs every line: real data, a real network, a few seconds.
SMALL_TRAIN = ("--model", "mobilenet_v1", "--epochs", 1)
SMALL_PRUNE = ("--flops", 0.5, "--candidates", 3, "--bn-batches", 2, "--epochs", 1)
