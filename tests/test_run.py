import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from power import Watch

from capsprune.errors import RunError
from capsprune.files import write_text
from capsprune.records import StageName
from capsprune.run import list_runs, open_run, read_run
from capsprune.stages import STAGES

NETWORK = {"model": "tiny", "data": "digits", "forward_macs": 1, "parameters": 1, "frozen": False}
ONNX = {
    "path": "model.onnx",
    "bytes": 1,
    "opset": 18,
    "inline": False,
    "inputs": {"image": ["batch", 3, 8, 8]},
    "outputs": {"poses": ["batch", 3]},
    "batches": [1],
    "max_abs_difference": 0.0,
    "top1_agreement": 1.0,
}
MEASUREMENT = {
    "variant": "a",
    "provider": "cpu",
    "batch": 1,
    "latency_ms": 1.0,
    "latency_ms_p25": 1.0,
    "latency_ms_p75": 1.0,
    "routing_share": None,
}
COSTS = {"forward_macs": 1, "parameters": 1, "file_bytes": 1}
PROFILE = {"variants": {"a": COSTS}, "measurements": [MEASUREMENT]}
ANALYSIS = {
    "model": "tiny",
    "data": "digits",
    "images": 1,
    "bottleneck_entropy": 0.5,
    "active_share": 0.5,
    "primary_length": 0.5,
    "never_active": 0,
    "never_active_share": 0.0,
    "primary_capsules": 1,
    "coupling_entropy": [1.0],
    "agreement_true": [1.0],
    "agreement_other": [None],
    "robustness": [{"distortion": "none", "amount": 0, "unit": "", "capsules": 0.5}],
}
SUMMARIES = dict.fromkeys([*STAGES], NETWORK) | {
    "onnx": ONNX,
    "profile": PROFILE,
    "analysis": ANALYSIS,
}


def make(run, stage: StageName, *, id: str, parent=None, overwrite=False, **options):
    """Do a stage as the pipeline does, leaving a folder with its id in it."""
    if run.finished(stage, options, parent, overwrite) is not None:
        return False
    work = run.begin(stage, options, parent)
    result = work / "result"
    result.mkdir()
    (result / "id").write_text(id)
    run.commit(
        stage, result, id=id, options=options, parent=parent, seconds=1.0, summary=SUMMARIES[stage]
    )
    return True


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


def replaced(content, path, value):
    """Put a value in its place in parsed JSON; a key that is None takes what there is away."""
    *before, last = path
    for key in before:
        content = content[key]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


GONE = object()
BASELINE, PROFILED, ANALYSED = (
    ("stages", stage, "summary") for stage in ("baseline", "profile", "analysis")
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), 10**15),
        (("seed",), 10**30),
        (("seed",), -1),
        (("seed",), "0"),
        (("created",), "x" * 10**6),
        (("versions",), ["1"]),
        (("stages",), []),
        (("stages", "else"), {}),
        (("stages", "baseline"), None),
        (("stages", "baseline", "seconds"), float("nan")),
        (("stages", "baseline", "seconds"), -1.0),
        (("stages", "baseline", "id"), 3),
        (("stages", "baseline", "options"), [1]),
        (("stages", "baseline", "options", "epochs"), 1e308),
        (BASELINE, None),
        (BASELINE, {}),
        (BASELINE, []),
        ((*BASELINE, "model"), GONE),
        ((*BASELINE, "model"), 5),
        ((*BASELINE, "model"), "x" * 10**7),
        ((*BASELINE, "data"), None),
        ((*BASELINE, "data_root"), 5),
        ((*BASELINE, "data_root"), "nul\0"),
        ((*BASELINE, "accuracy"), None),
        ((*BASELINE, "accuracy"), 1.5),
        ((*BASELINE, "accuracy"), "much"),
        ((*BASELINE, "forward_macs"), 1e308),
        ((*BASELINE, "forward_macs"), True),
        ((*BASELINE, "epochs"), 10**9),
        ((*BASELINE, "energy_joules"), -1.0),
        ((*BASELINE, "later"), 1e300),
        ((*BASELINE, "later"), "x" * 10**6),
        ((*BASELINE, "later"), [[[[[[[[[[]]]]]]]]]]),
        ((*BASELINE, "later"), [0] * 1_100_000),
        (("stages", "caps", "summary", "frozen"), "no"),
        (("stages", "caps", "summary", "frozen"), GONE),
        (("stages", "onnx", "summary", "bytes"), GONE),
        (("stages", "onnx", "summary", "inputs"), {"image": 3}),
        ((*PROFILED, "measurements"), []),
        ((*PROFILED, "measurements"), [{}]),
        ((*PROFILED, "measurements", 0), "fast"),
        ((*PROFILED, "measurements", 0, "latency_ms"), None),
        ((*PROFILED, "variants"), {}),
        ((*PROFILED, "variants", "b"), COSTS),
        ((*PROFILED, "variants", "a"), []),
        ((*ANALYSED, "coupling_entropy"), 1),
        ((*ANALYSED, "coupling_entropy"), [0.0] * 1000),
        ((*ANALYSED, "robustness"), [1]),
        ((*ANALYSED, "robustness", 0, "capsules"), "good"),
        ((*ANALYSED, "never_active"), GONE),
    ],
)
def test_a_record_on_which_nobody_can_rely_is_damaged(whole, path, value):
    content = json.loads(whole.read_text())
    replaced(content, path, value)
    whole.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"run\.json is damaged \(.*\); give another --run") as error:
        read_run(whole.parent.parent, "r")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(whole))


@pytest.fixture
def whole(tmp_path):
    """The run.json of a run with some stages."""
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1", epochs=2)
        make(run, "pruned", id="p1", parent="b1")
        make(run, "caps", id="c1", parent="p1")
        make(run, "onnx", id="o1", parent="c1")
        make(run, "profile", id="q1", parent="o1")
        make(run, "analysis", id="a1", parent="c1")
    return tmp_path / "r" / "run.json"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**6, b"null", b"[]", b"NaN"])
def test_a_run_file_that_is_no_record_is_damaged(whole, content):
    whole.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_run(whole.parent.parent, "r")


def test_what_a_later_version_adds_and_a_meter_lacks_is_read(whole):
    content = json.loads(whole.read_text())
    summary = content["stages"]["baseline"]["summary"]
    summary |= {"later": [1, {"a": None}], "energy_joules": None, "loss": None}
    whole.write_text(json.dumps(content))
    assert read_run(whole.parent.parent, "r").stages["baseline"].summary.to_dict() == summary


@pytest.mark.parametrize("name", ["x" * 201, "", "a/b", "nul\0", "-a"])
def test_what_is_no_name_for_a_run_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="is no name for a run"):
        read_run(tmp_path, name)
