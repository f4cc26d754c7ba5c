"""The study on disk: SIGKILL at any moment, two processes at a time, bad databases."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsprune.errors import StudyError
from capsprune.pruning import study as study_module
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.database import hidden
from capsprune.pruning.study import Study

SCRIPT = Path(__file__).with_name("search_script.py")


def start(database, *, shared="alone", owner="", candidates=9, sampler="random", factor=1, wait=0):
    command = [SCRIPT, database, shared, owner, candidates, sampler, factor, wait]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def stored(lines):
    return [line[2:].strip() for line in lines if line.startswith("-")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a search prints that nobody interrupts."""
    made = {}

    def lines(sampler, factor=1, candidates=9):
        key = (sampler, factor, candidates)
        if key not in made:
            database = tmp_path_factory.mktemp("whole") / "study.db"
            made[key] = finish(
                start(database, sampler=sampler, factor=factor, candidates=candidates)
            )
        return made[key]

    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "factor"), [("random", 2), ("tpe", 1), ("cmaes", 1), ("evolution", 1)]
)
def test_killed_at_any_moment_it_goes_on(tmp_path, undisturbed, sampler, factor):
    """Killed three times, a search stores each candidate once and ends as if nothing had been."""
    whole = undisturbed(sampler, factor)
    moments = random.Random(f"{sampler}{factor}")
    done: list[str] = []
    for _ in range(3):
        process = start(tmp_path / "study.db", sampler=sampler, factor=factor, wait=0.05)
        assert process.stdout is not None
        # Somewhere between the first sign of work and a few candidates later.
        for _ in range(moments.randint(1, 5)):
            if not (line := process.stdout.readline()):
                break
            done += stored([line])
        time.sleep(moments.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        done += stored(process.communicate()[0].splitlines())
    rest = finish(start(tmp_path / "study.db", sampler=sampler, factor=factor))
    done += stored(rest)
    assert len(done) == len(set(done))
    # One that was stored in the moment before it was to be printed is missing from the lines only.
    assert set(done) <= set(stored(whole)) and len(done) >= len(stored(whole)) - 3
    assert rest[-1] == whole[-1]
    with Study.local(tmp_path / "study.db") as study:
        study.rung(0), study.rung(1), study.rung(2)
        tried = [f"{candidate.rung} {candidate.index}" for candidate in study.candidates()]
        trials = sum(len(study.rung(n).optuna_study.trials) for n in range(3))
    assert sorted(tried) == sorted(stored(whole))
    assert trials == len(tried)


@pytest.mark.slow
def test_two_processes_share_one_database(tmp_path, undisturbed):
    processes = [
        start(tmp_path / "study.db", shared="shared", factor=2, wait=0.3) for _ in range(2)
    ]
    outputs = [finish(process) for process in processes]
    done = [stored(lines) for lines in outputs]
    assert len(done[0]) >= 3 and len(done[1]) >= 3
    assert sorted(done[0] + done[1]) == sorted(stored(undisturbed("random", 2)))
    assert outputs[0][-1] == outputs[1][-1] == undisturbed("random", 2)[-1]


@pytest.mark.slow
def test_what_a_dead_process_left_is_done_by_another(tmp_path, undisturbed):
    dying = start(tmp_path / "study.db", shared="shared", wait=30)
    assert dying.stdout is not None and dying.stdout.readline().startswith("+")
    dying.kill()
    dying.communicate()
    # The grace period is a matter of minutes: here it has passed already.
    import sqlite3

    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    lines = finish(start(tmp_path / "study.db", shared="shared"))
    assert stored(lines)[-1] == "0 0"
    assert lines[-1] == undisturbed("random")[-1]


@pytest.mark.slow
def test_a_process_that_comes_back_takes_up_its_own(tmp_path, undisturbed):
    dying = start(tmp_path / "study.db", shared="shared", owner="me", wait=30)
    assert dying.stdout is not None and dying.stdout.readline().startswith("+")
    dying.kill()
    dying.communicate()
    lines = finish(start(tmp_path / "study.db", shared="shared", owner="me"))
    assert stored(lines) == stored(undisturbed("random"))


def test_killed_once_it_goes_on(tmp_path):
    """The quick form of `test_killed_at_any_moment_it_goes_on`."""
    process = start(tmp_path / "study.db", candidates=3, wait=0.3)
    assert process.stdout is not None
    begun = [process.stdout.readline().strip() for _ in range(3)]
    process.kill()
    process.communicate()
    assert begun == ["+ 4 0", "- 0 0", "+ 4 1"]
    rest = finish(start(tmp_path / "study.db", candidates=3))
    assert stored(rest) == ["0 1", "0 2"]


def candidate(index=0, score=0.5, loss=1.0, **fields):
    return Candidate(index, (0.1, 0.25), 10, 0.5, 20, score, loss, **fields)


def test_a_candidate_comes_back_as_it_was(tmp_path):
    kept = [
        candidate(0, 1 / 3, 0.123456789012345, seconds={"pruning": 0.25}),
        candidate(1, 0.0, 0.0, latency_ms=3.5, violation=0.75),
        candidate(2, 0.0, 2.0, latency_ms=1.5),
    ]
    with Study.local(tmp_path / "study.db") as study:
        for one in kept:
            claim = study.rung(0).claim(one.index, one.fractions, 0.7)
            study.rung(0).finish(claim, one)
        assert study.candidates() == kept
    with Study.local(tmp_path / "study.db") as study:
        assert list(study.rung(0).finished().values()) == kept
        trials = study.rung(0).optuna_study.trials
    assert [trial.value for trial in trials] == [1 / 3, -0.75, 0.0]
    assert trials[0].params == {"group000": 0.1, "group001": 0.25}


def test_what_was_scored_but_not_marked_is_not_tried_again(tmp_path, monkeypatch):
    with Study.local(tmp_path / "study.db") as study:
        rung = study.rung(0)
        claim = rung.claim(0, (0.1, 0.25), 0.7)
        monkeypatch.setattr(rung, "_complete", lambda *given: None)  # as if killed there
        rung.finish(claim, candidate())
    with Study.local(tmp_path / "study.db") as study:
        assert study.rung(0).left_over() == []
        assert list(study.rung(0).finished().values()) == [candidate()]


def test_a_claim_can_be_lost_to_another_process(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with Study(url) as one, Study(url) as two:
        assert one.rung(0).claim(0, (0.1,), 0.7) is not None
        assert two.rung(0).taken() == {0}
        assert two.rung(0).claim(0, (0.1,), 0.7) is None
        assert two.rung(0).claim(1, (0.2,), 0.7) is not None
        assert two.rung(0).left_over()[0].index == 1
        assert one.rung(0).taken() == {0, 1}


def test_a_candidate_counts_once_where_two_processes_finished_it(tmp_path):
    """One that was taken for dead may come back."""
    with Study(f"sqlite:///{tmp_path / 'study.db'}") as study:
        rung = study.rung(0)
        first = rung.claim(0, (0.1, 0.25), 0.7)
        rung.optuna_study.tell(first.trial.number, state=_state("FAIL"))
        second = rung.claim(0, (0.1, 0.25), 0.7)
        assert second is not None
        rung.finish(second, candidate(score=0.75))
        rung.finish(first, candidate(score=0.25))
        assert rung.finished()[0].score == 0.75


def _state(name):
    import optuna

    return optuna.trial.TrialState[name]


def test_a_study_of_another_search_is_refused(tmp_path):
    with Study.local(tmp_path / "study.db") as study:
        study.require({"seed": 0, "sampler": "tpe"})
        study.require({"seed": 0, "sampler": "tpe"})
        with pytest.raises(StudyError, match="sampler tpe instead of random"):
            study.require({"seed": 0, "sampler": "random"})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "no URL of a database"),
        ("", "no URL of a database"),
        ("nodatabase://host/name", "nodatabase"),
        ("sqlite:////no/such/folder/study.db", "cannot be opened"),
        ("mysql+nodriver://me:secret@host/name", "host/name"),
        ("mysql+mysqldb://me:secret@localhost/name", "driver that is not installed"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named_without_its_password(url, words):
    with pytest.raises(StudyError, match=words) as error:
        Study(url)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "study.db").write_text("no database at all, but long enough to be read\n" * 99)
    with pytest.raises(StudyError, match="not a database"):
        Study.local(tmp_path / "study.db")


def test_passwords_are_hidden():
    assert hidden("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"
    assert "secret" not in hidden("::secret::")


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setattr(study_module, "HEARTBEAT", 0.05)

    def heartbeat():
        with sqlite3.connect(tmp_path / "study.db") as connection:
            return connection.execute("SELECT heartbeat FROM trial_heartbeats").fetchone()

    old = "2020-01-01 00:00:00"
    with Study(f"sqlite:///{tmp_path / 'study.db'}") as study:
        study.rung(0).claim(0, (0.1,), 0.7)
        with sqlite3.connect(tmp_path / "study.db") as connection:
            connection.execute(f"UPDATE trial_heartbeats SET heartbeat = '{old}'")
        for _ in range(100):
            if heartbeat()[0] != old:
                break
            time.sleep(0.05)
        assert heartbeat()[0] != old


def test_the_seconds_of_an_older_candidate_are_read():
    record = {**candidate(0, 0.5).to_dict(), "seconds": {"surgery": 0.25, "scoring": 1.0}}
    assert Candidate.from_dict(record).seconds == {"pruning": 0.25, "scoring": 1.0}
