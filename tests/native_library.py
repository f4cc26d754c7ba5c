"""The op library in tests: present, or the test is skipped and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsprune import native


def require_library() -> Path:
    """Path of the op library; without one the test is skipped."""
    path = native.library_path()
    if path is None:
        pytest.skip(f"the op library is {native.why_missing()}")
    return path
