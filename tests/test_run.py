"""A run: what is done, what is stale, who works in it."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make

from capsprune.errors import RunError
from capsprune.run import list_runs, open_run, read_run


def test_a_stage_is_done_once(tmp_path):
    with open_run(tmp_path, "r", seed=3, create=True) as run:
        assert make(run, "baseline", id="b1", epochs=2)
        assert not make(run, "baseline", id="b2", epochs=2)
    assert (tmp_path / "r" / "baseline" / "id").read_text() == "b1"
    again = read_run(tmp_path, "r")
    assert again.seed == 3 and again.stages["baseline"].options == {"epochs": 2}
    assert not (tmp_path / "r" / ".work" / "baseline").exists()


def test_other_options_are_refused_unless_it_may_be_replaced(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1", epochs=2, lr=0.1)
        with pytest.raises(RunError, match=r"made with epochs 2 instead of 5; give --overwrite"):
            make(run, "baseline", id="b2", epochs=5, lr=0.1)
        with pytest.raises(RunError, match=r"made with epochs 2 instead of left open;"):
            make(run, "baseline", id="b2", epochs=None, lr=0.1)
        assert make(run, "baseline", id="b2", overwrite=True, epochs=5, lr=0.1)
    assert (tmp_path / "r" / "baseline" / "id").read_text() == "b2"


def test_a_stage_needs_the_one_before_it(tmp_path):
    with (
        open_run(tmp_path, "mine", create=True) as run,
        pytest.raises(RunError, match=r"first run 'capsprune prune --run mine'"),
    ):
        run.require("pruned", "attach-caps")


def test_what_was_made_from_something_older_is_stale(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
        make(run, "pruned", id="p1", parent="b1")
        make(run, "caps", id="c1", parent="p1")
        assert run.require("caps", "export").id == "c1"
        make(run, "baseline", id="b2", overwrite=True)
        with pytest.raises(RunError, match="pruned of run 'r' was made from an older baseline"):
            run.require("caps", "export")
        make(run, "pruned", id="p2", parent="b2", overwrite=True)
        with pytest.raises(RunError, match="caps of run 'r' was made from an older pruned"):
            run.require("caps", "export")


def test_results_that_vanished_are_missed(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
        (tmp_path / "r" / "baseline").rename(tmp_path / "elsewhere")
        with pytest.raises(RunError, match=r"is gone; run 'capsprune train --run r --overwrite'"):
            run.require("baseline", "prune")


def test_work_is_kept_for_the_same_request_alone(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        (run.begin("baseline", {"epochs": 2}, None) / "training.pt").write_text("half")
    with open_run(tmp_path, "r") as run:
        assert (run.begin("baseline", {"epochs": 2}, None) / "training.pt").is_file()
        assert not (run.begin("baseline", {"epochs": 3}, None) / "training.pt").exists()
        (run.work("baseline") / "training.pt").write_text("half")
        assert not (run.begin("baseline", {"epochs": 3}, "p") / "training.pt").exists()


def test_a_run_in_which_nothing_was_begun_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), open_run(tmp_path / "runs", "r", create=True):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r").mkdir()
    with open_run(tmp_path / "runs", "r", create=True):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "r"]


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "/tmp/x", ".hidden", "-r", "a b", "ä"])
def test_names_that_are_no_folder_of_their_own_are_refused(tmp_path, name):
    with pytest.raises(RunError, match="no name for a run"), open_run(tmp_path, name, create=True):
        pass
    with pytest.raises(RunError, match="no name for a run"):
        read_run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_run_is_not_made_by_reading(tmp_path):
    with pytest.raises(RunError, match="no run 'r'"), open_run(tmp_path, "r"):
        pass
    with pytest.raises(RunError, match="no run 'r'"):
        read_run(tmp_path, "r")
    assert list(tmp_path.iterdir()) == []


def test_another_seed_is_refused(tmp_path):
    with open_run(tmp_path, "r", seed=3, create=True) as run:
        make(run, "baseline", id="b1")
    with open_run(tmp_path, "r") as run:
        assert run.seed == 3
    with pytest.raises(RunError, match="seed 3, not 4"), open_run(tmp_path, "r", seed=4):
        pass


def _try(root: str, answers) -> None:
    try:
        with open_run(Path(root), "r", create=True):
            answers.put("open")
    except RunError as error:
        answers.put(str(error))


def test_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()

    def ask() -> str:
        other = context.Process(target=_try, args=(str(tmp_path), answers))
        other.start()
        answer = answers.get(timeout=60)
        other.join()
        return answer

    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
        assert "Another process is at work in run 'r'" in ask()
    assert ask() == "open"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', "\0"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        read_run(tmp_path, "r")


def test_listing_passes_over_what_is_no_run(tmp_path):
    for name in ("b", "a"):
        with open_run(tmp_path, name, create=True) as run:
            make(run, "baseline", id="b1")
    (tmp_path / "c").mkdir()
    (tmp_path / "d.txt").write_text("")
    runs, damaged = list_runs(tmp_path)
    assert [run.name for run in runs] == ["a", "b"] and damaged == {}
    assert list_runs(tmp_path / "absent") == ([], {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_listing_names_what_is_damaged_and_goes_on(tmp_path, content):
    for name in ("a", "b", "c"):
        with open_run(tmp_path, name, create=True) as run:
            make(run, "baseline", id=name)
    (tmp_path / "b" / "run.json").write_bytes(content)
    runs, damaged = list_runs(tmp_path)
    assert [run.name for run in runs] == ["a", "c"]
    assert list(damaged) == ["b"] and "run.json is damaged" in damaged["b"]


def test_listing_names_what_may_not_be_read(tmp_path, monkeypatch):
    for name in ("a", "b"):
        with open_run(tmp_path, name, create=True) as run:
            make(run, "baseline", id=name)
    is_file = Path.is_file

    def refuse(path):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    runs, damaged = list_runs(tmp_path)
    assert [run.name for run in runs] == ["b"]
    assert "Permission denied" in damaged["a"]


def test_the_record_says_with_which_versions(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1")
        run.write_split('{"x": 1}')
        assert run.read_split() == '{"x": 1}'
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert {"python", "capsprune", "torch", "onnx"} <= set(record["versions"])


def test_a_stage_of_another_run_is_taken_over(tmp_path):
    with open_run(tmp_path, "source", create=True) as source:
        make(source, "baseline", id="b1", epochs=2)
        source.write_split("{}")
    with open_run(tmp_path, "r", create=True) as run:
        with pytest.raises(RunError, match=r"source.*has not yet"):
            run.adopt("pruned", source)
        assert run.adopt("baseline", source).id == "b1"
        assert run.read_split() == "{}"
        assert not make(run, "baseline", id="b2", epochs=2)  # it is done as asked
    again = read_run(tmp_path, "r")
    assert (again.path("baseline") / "id").read_text() == "b1"
    # What is replaced in one run stays as it was in the other.
    with open_run(tmp_path, "source") as source:
        make(source, "baseline", id="b3", epochs=2, overwrite=True)
    assert (again.path("baseline") / "id").read_text() == "b1"


def test_an_option_that_came_later_is_left_open_in_an_older_record(tmp_path):
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1", epochs=2)
        assert run.finished("baseline", {"epochs": 2, "part": None}, None, False) is not None
        with pytest.raises(RunError, match=r"part left open instead of 0\.5"):
            run.finished("baseline", {"epochs": 2, "part": 0.5}, None, False)


_CROWD = """
import os, pathlib, sys, time
from capsprune.errors import RunError
from capsprune.run import open_run
root = pathlib.Path(sys.argv[1])
opened = 0
while opened < 20:
    try:
        with open_run(root / "runs", "r", create=True):
            os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
            opened += 1
            (root / "inside").unlink()
    except RunError:
        time.sleep(0.001)
print(opened)
"""


def test_however_many_open_and_leave_a_run_one_is_inside(tmp_path):
    crowd = [
        subprocess.Popen([sys.executable, "-c", _CROWD, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    opened = [int(one.communicate(timeout=120)[0] or -1) for one in crowd]
    assert all(one.returncode == 0 for one in crowd)
    assert opened == [20] * len(crowd)
    assert not list(tmp_path.rglob(".lock"))


def test_a_run_that_was_left_before_anything_was_begun_leaves_nothing_in_the_end(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "from capsprune.run import open_run\n"
        "with open_run(pathlib.Path(sys.argv[1]), 'r', create=True):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    with open_run(tmp_path, "r", create=True):
        assert (tmp_path / "r" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 201, "", "a/b", "nul\0", "-a"])
def test_what_is_no_name_for_a_run_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="is no name for a run"):
        read_run(tmp_path, name)
