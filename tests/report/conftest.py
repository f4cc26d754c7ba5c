import os

import pytest

from capsprune import run


@pytest.fixture(autouse=True)
def _quick_runs():
    """Hundreds of stages are committed here, which need not survive the loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(run, "versions", dict)
        yield
