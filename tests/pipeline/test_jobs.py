import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from capsprune.errors import CapspruneError, Interrupted
from capsprune.pipeline.jobs import Job, run_jobs
from capsprune.progress import Progress


def append(path: Path, text: str, progress: Progress, place: int) -> None:
    progress.say(f"place {place}")
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def fail(progress: Progress, place: int) -> None:
    raise CapspruneError("The cause; the remedy.")


def fault(progress: Progress, place: int) -> None:
    raise KeyError("of ours")


def die(progress: Progress, place: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_at_work(folder: Path, progress: Progress, place: int) -> None:
    """Note how many are at work, and wait until another one is, for a while at most."""
    mine = folder / f"{os.getpid()}"
    mine.touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder.parent / f"seen-{place}").write_text(str(len(list(folder.iterdir()))))


def interrupt(parent: int, progress: Progress, place: int) -> None:
    os.kill(parent, signal.SIGINT)
    time.sleep(60)


class Listener(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_jobs_are_done_after_those_that_they_need(tmp_path):
    file = tmp_path / "order"
    listener = Listener()
    jobs = [
        Job("a", partial(append, file, "a")),
        Job("b", partial(append, file, "b"), needs=("a",)),
        Job("c", partial(append, file, "c"), needs=("a", "b")),
    ]
    assert run_jobs(jobs, 2, listener, "Jobs") == {}
    assert file.read_text() == "abc"
    assert listener.lines == ["a: place 0", "b: place 0", "c: place 0"]


def test_a_failure_stops_only_what_needs_it(tmp_path):
    file = tmp_path / "done"
    ended = []
    jobs = [
        Job("broken", fail),
        Job("above", partial(append, file, "x"), needs=("broken",)),
        Job("faulty", fault),
        Job("dead", die),
        Job("sound", partial(append, file, "y")),
    ]
    failed = run_jobs(jobs, 1, Progress(), "Jobs", lambda job, why: ended.append((job.name, why)))
    assert file.read_text() == "y"
    assert failed["broken"] == "The cause; the remedy."
    assert failed["above"] == "not begun, as broken failed"
    assert failed["faulty"] == "KeyError: 'of ours'"
    assert "exit code -9" in failed["dead"] and "fewer --jobs" in failed["dead"]
    assert dict(ended) == {**failed, "sound": None}


def test_two_jobs_are_at_work_at_a_time(tmp_path):
    folder = tmp_path / "at-work"
    folder.mkdir()
    jobs = [Job(str(n), partial(count_at_work, folder)) for n in range(2)]
    assert run_jobs(jobs, 2, Progress(), "Jobs") == {}
    assert [(tmp_path / f"seen-{place}").read_text() for place in range(2)] == ["2", "2"]


def test_an_interruption_ends_the_processes():
    started = time.monotonic()
    # Where the tests run in the background, they would ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted):
            run_jobs([Job("long", partial(interrupt, os.getpid()))], 1, Progress(), "Jobs")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 50


PARENT = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_jobs
from capsprune.pipeline.jobs import Job, run_jobs
from capsprune.progress import Progress
run_jobs([Job("long", partial(test_jobs.linger, Path({folder!r})))], 1, Progress(), "Jobs")
"""


def linger(folder: Path, progress: Progress, place: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def test_jobs_end_with_a_sweep_that_is_killed(tmp_path):
    code = PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    sweep = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while not (begun := list(tmp_path.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        sweep.kill()
        sweep.wait()
    (job,) = begun
    deadline = time.monotonic() + 10
    while alive(int(job.name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(job.name))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
