import signal
import time

import psutil
import pytest
import torch
from process_targets import die_at_first, report, wait_for

from capsprune.pool import Died, Pool, Raised, Returned, Said


def events(pool, number=1):
    """Give what ends each of some tasks, by task, and what was said."""
    ends, said = {}, []
    deadline = time.monotonic() + 100
    while len(ends) < number and time.monotonic() < deadline:
        for task, event in pool.wait(10):
            if isinstance(event, Said):
                said.append(event.message)
            else:
                ends[task] = event
    return ends, said


def test_processes_share_one_copy_and_work_at_the_same_time(tmp_path):
    shared = {"weight": torch.arange(3.0), "folder": tmp_path}
    with Pool(report, 2, threads=1, shared=shared, folder=tmp_path) as pool:
        for task in ("a", "b"):
            pool.submit(task)
        assert pool.busy == 2
        ends, said = events(pool, 2)
        assert pool.busy == 0
        assert {task: event.value[:2] for task, event in ends.items()} == {
            "a": (3.0, 1),
            "b": (3.0, 1),
        }
        # Each waited for the other, from a place of its own.
        assert sorted(said) == [0, 1]
        assert {event.value[2] for event in ends.values()} == set(pool.pids)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_process_works_on_many_tasks_or_on_one(reuse):
    with Pool(wait_for, 1, threads=1, reuse=reuse) as pool:
        for task in ("0", "0.0"):
            pool.submit(task)
        ends, _ = events(pool, 2)
    assert len({event.value for event in ends.values()}) == (1 if reuse else 2)


def test_the_task_of_a_process_that_dies_is_tried_again_and_no_others(tmp_path):
    with Pool(die_at_first, 2, threads=1, attempts=3) as pool:
        tasks = [(str(tmp_path / "twice"), 2), (str(tmp_path / "never"), 0)]
        for task in tasks:
            pool.submit(task)
        ends, _ = events(pool, 2)
    assert [ends[task] for task in tasks] == [Returned(3), Returned(1)]


def test_a_task_that_ends_each_process_is_given_up_and_the_rest_go_on(tmp_path):
    with Pool(die_at_first, 1, threads=1, attempts=2) as pool:
        tasks = [(str(tmp_path / "always"), 9), (str(tmp_path / "never"), 0)]
        for task in tasks:
            pool.submit(task)
        ends, _ = events(pool, 2)
    assert [ends[task] for task in tasks] == [Died(-signal.SIGKILL, 2), Returned(1)]


def test_what_a_task_raises_is_told_and_its_process_goes_on():
    with Pool(wait_for, 1, threads=1) as pool:
        pool.submit("soon")
        ends, _ = events(pool)
        (first,) = pool.pids
        assert ends["soon"] == Raised("ValueError: could not convert string to float: 'soon'")
        pool.submit("0")
        assert events(pool)[0] == {"0": Returned(first)}


def test_closing_ends_the_processes_at_once():
    pool = Pool(wait_for, 2, threads=1)
    for _ in range(3):
        pool.submit("600")
    processes = [psutil.Process(pid) for pid in pool.pids]
    assert pool.wait(0.01) == []
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 4
    assert pool.busy == 0 and not any(process.is_running() for process in processes)


def test_what_is_shared_needs_space(tmp_path):
    with pytest.raises(OSError):
        Pool(wait_for, 1, threads=1, shared=torch.ones(3), folder=tmp_path / "missing")
    assert not list(tmp_path.iterdir())
