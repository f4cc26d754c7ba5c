from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runner import SMALL_PRUNE, SMALL_TRAIN, Outcome, call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages of a small run were done, command by command."""
    folder = tmp_path_factory.mktemp("finished")
    for command in (
        ("train", *SMALL_TRAIN),
        ("prune", *SMALL_PRUNE),
        ("attach-caps", "--epochs", 1),
        ("export", "--onnx"),
        ("profile", "--batch", "1,4", "--repeats", 5),
    ):
        outcome = call(*command, folder=folder)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the command line in an empty folder."""
    return lambda *arguments: call(*arguments, folder=tmp_path)
