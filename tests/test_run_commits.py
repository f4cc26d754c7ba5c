"""A stage's result is the old one or the new one, whenever a process is killed."""

import json
import os
import sys
from pathlib import Path

import pytest
from made_runs import SUMMARIES, make
from power import Watch

from capsprune.files import write_text
from capsprune.records import StageName
from capsprune.run import open_run
from capsprune.stages import STAGES


def leave_result(work: Path, stage: StageName, content: str) -> Path:
    """Leave a result as stages do: written, and not flushed."""
    if stage in ("profile", "analysis"):
        result = work / f"{stage}.json"
        result.write_text(content)
        return result
    result = work / "result"
    (result / "inner").mkdir(parents=True)
    for file in (result / "id", result / "inner" / "further"):
        file.write_text(content)
    return result


@pytest.mark.parametrize("stage", [*STAGES])
def test_a_stage_is_noted_as_done_when_all_of_it_is_on_the_disk(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch, stage: StageName
) -> None:
    notings = []
    replace = os.replace

    def check(source, target, **others):
        if Path(target).name == "run.json":
            run = Path(target).parent
            for done in json.loads(Path(source).read_text(encoding="utf-8"))["stages"]:
                path = next(path for path in (run / done, run / f"{done}.json") if path.exists())
                assert watch.unflushed(path) == []
                assert watch.is_named(path)
                notings.append(done)
        replace(source, target, **others)

    monkeypatch.setattr(os, "replace", check)
    runs = tmp_path / "new" / "runs"
    with open_run(runs, "r", create=True) as run:
        for content in ("first", "second"):
            result = leave_result(run.begin(stage, {}, None), stage, content)
            run.commit(
                stage,
                result,
                id=content,
                options={},
                parent=None,
                seconds=1,
                summary=SUMMARIES[stage],
            )
        with open_run(runs, "other", create=True) as other:
            if run.path(stage).is_dir():
                other.adopt(stage, run)
            else:
                other.begin(stage, {}, None)
    assert notings == [stage] * (3 if (runs / "r" / stage).is_dir() else 2)
    for name in ("r", "other"):
        assert watch.is_named(runs / name / "run.json")
        assert watch.is_named(runs / name) and watch.is_named(runs) and watch.is_named(runs.parent)


def commit_and_die(root: Path, stage: StageName, step: int) -> int:
    """Replace a result in a process that dies before its step, counted in calls of the system.

    Returns:
        The process's exit code: 9 if it died.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = step
    changes = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}

    def die(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in changes and str(root) in str(arguments[0]):
            left -= 1
            if left < 0:
                os._exit(9)

    try:
        with open_run(root, "r") as run:
            result = leave_result(run.begin(stage, {"epochs": 2}, None), stage, "new")
            sys.addaudithook(die)
            run.commit(
                stage,
                result,
                id="new",
                options={"epochs": 2},
                parent=None,
                seconds=1,
                summary=SUMMARIES[stage],
            )
            left = 10**9  # what comes after is no part of it
    finally:
        os._exit(0)


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        ("profile", True),
        pytest.param("profile", False, marks=pytest.mark.slow),
        pytest.param("baseline", True, marks=pytest.mark.slow),
    ],
)
def test_a_commit_that_is_killed_at_any_step_leaves_the_old_result_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: StageName, before: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no loss of power here
    found = []
    for step in range(1000):
        root = tmp_path / str(step)
        with open_run(root, "r", create=True) as run:
            if before:
                result = leave_result(run.begin(stage, {"epochs": 1}, None), stage, "old")
                run.commit(
                    stage, result, id="old", options={"epochs": 1}, parent=None, seconds=1,
                    summary=SUMMARIES[stage],
                )  # fmt: skip
            else:
                run.begin(stage, {"epochs": 1}, None)
        died = commit_and_die(root, stage, step)
        with open_run(root, "r") as run:
            record = run.stages.get(stage)
            path = run.path(stage)
            if record is None:
                assert not before and not path.exists()
                found.append(None)
            else:
                content = (path if path.is_file() else path / "id").read_text()
                assert content == record.id
                assert path.is_file() or (path / "inner" / "further").read_text() == content
                assert record.options == {"epochs": 2 if content == "new" else 1}
                found.append(content)
            work = run.directory / ".work"
            assert not [one for one in work.iterdir() if one.name != stage]
            assert not list(run.directory.rglob("*.partial"))
            if found[-1] == "new":
                assert not run.work(stage).exists()
        if not died:
            break
    # Once the new one is found, no later step loses it.
    first = found.index("new")
    assert first > 3
    assert set(found[:first]) == {"old" if before else None}
    assert set(found[first:]) == {"new"} and len(found) - first > 5


def test_a_result_that_an_older_version_had_moved_away_comes_back(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
    (tmp_path / "r" / "baseline").rename(tmp_path / "r" / ".work" / "replaced-baseline")
    with open_run(tmp_path, "r") as run:
        assert (run.path("baseline") / "id").read_text() == "b1"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"result": "../../x"}', "\0"])
def test_a_damaged_note_of_a_commit_is_passed_over(tmp_path, content):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
        work = run.begin("baseline", {"epochs": 2}, None)
        (work / "result").mkdir()
        write_text(work / "commit.json", content)
    with open_run(tmp_path, "r") as run:
        assert run.stages["baseline"].id == "b1"
        assert make(run, "baseline", id="b2", overwrite=True, epochs=2)
