"""Which study a search uses."""

from types import SimpleNamespace

import pytest

from capsprune.options import PruneOptions
from capsprune.pipeline.searching import Pruning, check_options, open_study
from capsprune.pipeline.stage import Stage


@pytest.fixture
def begun(tmp_path):
    """Claim a candidate in the study of a search; gives the candidates that others claimed."""

    def begin(
        index, parent="a", overwrite=False, storage=None, work="work", complete=False, **asked
    ):
        session = SimpleNamespace(run=SimpleNamespace(seed=0), overwrite=overwrite)
        options = PruneOptions(storage=storage, latency=asked.get("latency"))
        stage = SimpleNamespace(session=session, asked=asked, parent=parent)
        folder = tmp_path / work
        folder.mkdir(exist_ok=True)
        with open_study(Pruning(options, stage, folder, None, [], "l1", None)) as study:
            before = study.rung(0).taken()
            study.rung(0).claim(index, (0.1,), 0.7)
            if complete:
                study.complete()
        return before

    return begin


@pytest.mark.parametrize("shared", [False, True])
def test_another_baseline_or_request_has_another_study(begun, tmp_path, shared):
    storage = f"sqlite:///{tmp_path / 'shared.db'}" if shared else None
    assert begun(0, storage=storage) == set()
    assert begun(1, storage=storage, epochs=3) == {0}
    assert begun(2, storage=storage, parent="b") == set()
    assert begun(3, storage=storage, flops=0.25) == set()
    assert begun(4, storage=storage) == {0, 1}


def test_the_head_is_of_another_search_where_latency_is_measured(begun):
    assert begun(0) == set()
    assert begun(1, head="linear") == {0}
    assert begun(2, head="linear", latency=5) == set()
    assert begun(3, head="dynamic", latency=5) == set()
    assert begun(4, head="linear", latency=5) == {2}


def test_overwriting_begins_an_empty_shared_study_once(begun, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    begun(0, storage=storage, complete=True)
    assert begun(1, storage=storage, work="later", overwrite=True) == set()
    # Interrupted, and given again; and the same on another machine.
    assert begun(2, storage=storage, work="later", overwrite=True, complete=True) == {1}
    assert begun(3, storage=storage, work="later", overwrite=True) == {1, 2}
    assert begun(4, storage=storage, work="elsewhere") == {1, 2, 3}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (PruneOptions(), "capsprune-d5d442e98e0820de"),
        (
            PruneOptions(latency=5.0, head="linear", flops=0.5, candidates=4),
            "capsprune-8764f0d08dbb0efa",
        ),
    ],
)
def test_a_search_of_an_older_version_goes_on(tmp_path, options, name):
    """The names that studies had before other stages than `prune` had any."""
    session = SimpleNamespace(run=SimpleNamespace(seed=0), overwrite=False, precision="32-true")
    asked = {"model": "toy", "data": "colours", "image_size": 8}
    asked |= {"split_seed": None, "strategy_sha256": None}
    options = check_options(options)
    stage = Stage.of(session, "pruned", options, "a", **asked)
    with open_study(Pruning(options, stage, tmp_path, None, [], "l1", None)) as study:
        assert study.name == name
