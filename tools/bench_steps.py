"""Steps of a benchmark whose results are kept, so that it goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capsprune.files import write_text
from capsprune.progress import Progress


def kept(
    path: Path, name: str, progress: Progress, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return a step's result: the stored one if there is one.

    Args:
        path: where it is stored.
        name: the step's, which is said with the time when it begins.
        progress: what is told.
        make: computes it.
    """
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    progress.say(f"{time.strftime('%H:%M:%S')} {name}")
    result = make()
    write_text(path, json.dumps(result, indent=1) + "\n")
    return result
