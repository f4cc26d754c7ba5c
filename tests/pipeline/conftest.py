"""A run that has all stages, on a small network and a small data set added from outside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from open_tables import restored
from toy_pipeline import COLOURS, MADE, TOY, Place

from capsprune.backbones.registry import BACKBONES
from capsprune.data.names import DATA_SETS


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Add a backbone "toy", and a data set "colours", for the tests of one file."""
    with pytest.MonkeyPatch.context() as patch, restored(BACKBONES, DATA_SETS):
        patch.setenv("CAPSPRUNE_DATA", str(tmp_path_factory.mktemp("data")))
        BACKBONES.register("toy", "two convolutions")(TOY)
        DATA_SETS.register("colours", "noise")(COLOURS)
        yield


@pytest.fixture
def place(toys, tmp_path) -> Place:
    """An empty folder of runs."""
    return Place(tmp_path / "runs")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    return {}


@pytest.fixture(scope="module")
def finished_folder(toys, finished_once, tmp_path_factory) -> Path:
    """The folder of a run that has all stages; not to be written to."""
    if "folder" not in finished_once:
        made = Place(tmp_path_factory.mktemp("finished"))
        for command, values in MADE.items():
            made.do(command, **values)
        finished_once["folder"] = made.folder
    return finished_once["folder"]


@pytest.fixture
def finished(finished_folder, tmp_path) -> Place:
    """A copy of a run that has all stages."""
    shutil.copytree(finished_folder, tmp_path / "runs")
    return Place(tmp_path / "runs")
