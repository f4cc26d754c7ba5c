"""The study: what a search has tried, kept by Optuna in a database.

Each rung of successive halving is one Optuna study. A candidate is one trial: it is claimed when it
is proposed, with its fractions, and finished with its score. What was claimed but not finished when
a process died is taken up again with the same fractions. One run's own study is an SQLite file in
the run; a database that several machines reach can hold it instead, in which each claims what the
others have not.

All of it goes through Optuna's public interface but for what `trial_storage` names. Candidates are
claimed by `add_trial` rather than by `ask`, as one transaction must hold a claim and what it is of:
else two processes that claim the same candidate may each see their own claim only. Trials of dead
processes are failed, which makes their candidates free to be claimed; `RetryFailedTrialCallback`
would add copies of them that only `ask` hands out.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsprune.errors import StudyError
from capsprune.pruning import trial_storage
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.database import close, open_file, open_url, plainly
from capsprune.pruning.samplers import quiet_optuna

if TYPE_CHECKING:
    import optuna

#: Seconds between two signs of life, and until a process that gives none counts as dead.
HEARTBEAT = 20
GRACE = 90
#: The attributes of a study that say what is searched for, and that all of it was tried.
_SEARCH, _COMPLETE = "search", "complete"


@dataclass(frozen=True)
class Claim:
    """A candidate that this process works on."""

    trial: optuna.trial.FrozenTrial
    index: int
    fractions: tuple[float, ...]


class Study:
    """A search's candidates in a database. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        place: str | Path | None,
        name: str = "search",
        *,
        owner: str | None = None,
        anew: bool = False,
    ) -> None:
        """Open or make a study.

        Args:
            place: URL of a database as SQLAlchemy writes it, such as "sqlite:///search.db" or
                "postgresql://user@host/database", on which other processes may work at the same
                time; or path of an SQLite file that no other process uses; None to keep it in
                memory.
            name: of the study; different searches need different names.
            owner: who claims; what an owner of this name left unfinished is taken up again. None
                for a new one.
            anew: where the search of this name was finished, by any process, begin an empty one;
                one that others are at work on is joined.

        Raises:
            StudyError: if the database cannot be opened.
        """
        self.name = name
        self._owner = owner or uuid.uuid4().hex
        self._shared = isinstance(place, str)
        self._storage: Any
        if place is None:
            self._storage = quiet_optuna().storages.InMemoryStorage()
        elif isinstance(place, Path):
            self._storage = open_file(place, name)
        else:
            self._storage = open_url(place, HEARTBEAT, GRACE)
            with plainly():
                self.name = self._latest(name, anew)
        self._rungs: dict[int, Rung] = {}
        self._alive: dict[tuple[int, int], optuna.trial.FrozenTrial] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pulse: threading.Thread | None = None
        if self._shared:
            self._pulse = threading.Thread(target=self._beat, daemon=True)
            self._pulse.start()

    @classmethod
    def local(cls, path: Path, name: str = "search") -> Study:
        """Open a study in an SQLite file that no other process uses.

        Raises:
            StudyError: if the file is no such study.
        """
        return cls(path, name)

    @classmethod
    def in_memory(cls) -> Study:
        """Make a study that ends with this process."""
        return cls(None)

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop giving signs of life, and close the connections."""
        self._stop.set()
        if self._pulse is not None:
            self._pulse.join()
        close(self._storage)

    @property
    def in_database(self) -> bool:
        """Whether it outlives this process."""
        return isinstance(self._storage, quiet_optuna().storages.RDBStorage)

    @property
    def shared(self) -> bool:
        """Whether other processes may work on it too."""
        return self._shared

    def rung(self, number: int) -> Rung:
        """Give the candidates of one rung."""
        if number not in self._rungs:
            name = self.name if number == 0 else f"{self.name}-rung-{number}"
            with plainly():
                study = quiet_optuna().create_study(
                    storage=self._storage,
                    study_name=name,
                    direction="maximize",
                    load_if_exists=True,
                )
            self._rungs[number] = Rung(self, study, number)
        return self._rungs[number]

    def require(self, description: Mapping[str, Any]) -> None:
        """Note what is searched for; check it where that was noted before.

        Raises:
            StudyError: if the study is of another search.
        """
        study = self.rung(0).optuna_study
        wanted = json.loads(json.dumps(description))
        with plainly():
            noted = study.user_attrs.get(_SEARCH)
            if noted is None:
                study.set_user_attr(_SEARCH, wanted)
                return
        if not isinstance(noted, dict):
            raise StudyError(
                f"The study '{self.name}' is of no search of capsprune; give another --storage."
            )
        if noted != wanted:
            changed = [
                f"{key} {noted.get(key)} instead of {wanted.get(key)}"
                for key in sorted({*noted, *wanted})
                if noted.get(key) != wanted.get(key)
            ]
            raise StudyError(
                f"The study '{self.name}' is of another search, with {', '.join(changed)}; give "
                "another --storage, or the same options."
            )

    def complete(self) -> None:
        """Note that all that was to be tried is."""
        with plainly():
            self.rung(0).optuna_study.set_user_attr(_COMPLETE, True)

    def candidates(self) -> list[Candidate]:
        """Give everything that is finished, by rung and number."""
        return [
            candidate
            for number in sorted(self._rungs)
            for _, candidate in sorted(self._rungs[number].finished().items())
        ]

    def _latest(self, name: str, anew: bool) -> str:
        """Find the last study that was begun under a name, or a name for one that begins anew."""
        summaries = quiet_optuna().get_all_study_summaries(self._storage)
        found = {summary.study_name: summary for summary in summaries}
        count = 1
        while _numbered(name, count + 1) in found:
            count += 1
        last = found.get(_numbered(name, count))
        if anew and last is not None and last.user_attrs.get(_COMPLETE):
            count += 1
        return _numbered(name, count)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with self._lock:
                alive = list(self._alive.values())
            for trial in alive:
                # A database that is away for a moment must not end the search by this.
                with contextlib.suppress(Exception):
                    trial_storage.give_sign_of_life(self._storage, trial)
            self._storage.remove_session()


def _numbered(name: str, count: int) -> str:
    """Name of the study of a search that is done for the nth time."""
    return name if count == 1 else f"{name}-again-{count}"


class Rung:
    """The candidates of one rung."""

    def __init__(self, owner: Study, study: optuna.Study, number: int) -> None:
        """Use `Study.rung`."""
        self.optuna_study = study
        self.number = number
        self._study = owner
        self._storage = owner._storage
        self._finished: dict[int, Candidate] = {}
        self._seen: set[int] = set()

    def finished(self) -> dict[int, Candidate]:
        """Give the finished candidates by number, in the order in which they finished."""
        complete = quiet_optuna().trial.TrialState.COMPLETE
        new = [trial for trial in self._trials(complete) if trial.number not in self._seen]
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            self._seen.add(trial.number)
            candidate = self._read(trial)
            # Of two processes that finished the same candidate the first counts.
            self._finished.setdefault(candidate.index, candidate)
        return self._finished

    def taken(self) -> set[int]:
        """Give the numbers of all candidates that are finished or worked on by any process."""
        return set(self.finished()) | {trial.user_attrs["index"] for trial in self._running()}

    def left_over(self) -> list[Claim]:
        """Take up what this owner claimed and did not finish, by number.

        What has its score already, but was not marked as finished, is marked now.
        """
        claims = []
        for trial in self._running():
            if self._study.shared and trial.user_attrs["owner"] != self._study._owner:
                continue
            claim = Claim(trial, trial.user_attrs["index"], tuple(trial.user_attrs["fractions"]))
            with plainly():
                if "result" in trial.user_attrs:
                    self._complete(claim, self._read(trial))
                else:
                    self._begin(claim)
                    claims.append(claim)
        return sorted(claims, key=lambda claim: claim.index)

    def claim(self, index: int, fractions: tuple[float, ...], max_rate: float) -> Claim | None:
        """Claim a candidate.

        Args:
            index: its number.
            fractions: its removal fractions, [G].
            max_rate: the largest that one can be.

        Returns:
            The claim, or None if another process was faster.
        """
        optuna = quiet_optuna()
        attributes = {"index": index, "fractions": list(fractions), "owner": self._study._owner}
        with plainly():
            self.optuna_study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, user_attrs=attributes
                )
            )
            rivals = [trial for trial in self._running() if trial.user_attrs["index"] == index]
            mine = max(
                (trial for trial in rivals if trial.user_attrs["owner"] == self._study._owner),
                key=lambda trial: trial.number,
            )
            if self._study.shared and (
                index in self.finished() or min(trial.number for trial in rivals) != mine.number
            ):
                self.optuna_study.tell(mine.number, state=optuna.trial.TrialState.FAIL)
                return None
            claim = Claim(mine, index, fractions)
            self._begin(claim)
            if self._study.in_database:
                trial_storage.show_parameters(self._storage, mine, fractions, max_rate)
        return claim

    def finish(self, claim: Claim, candidate: Candidate) -> None:
        """Keep the result of a claimed candidate."""
        # Another process may have taken this one for dead, and the candidate for its own.
        finished = quiet_optuna().exceptions.UpdateFinishedTrialError
        with plainly(), contextlib.suppress(finished):
            trial_storage.note(self._storage, claim.trial, "result", candidate.to_dict())
            self._complete(claim, candidate)

    def release_dead(self) -> None:
        """Give up the claims of processes that gave no sign of life for a while."""
        if self._study.shared:
            with plainly():
                quiet_optuna().storages.fail_stale_trials(self.optuna_study)

    def _begin(self, claim: Claim) -> None:
        if self._study.shared:
            trial_storage.give_sign_of_life(self._storage, claim.trial)
            with self._study._lock:
                self._study._alive[self.number, claim.trial.number] = claim.trial

    def _complete(self, claim: Claim, candidate: Candidate) -> None:
        with self._study._lock:
            self._study._alive.pop((self.number, claim.trial.number), None)
        value = candidate.score if candidate.feasible else -candidate.violation
        self.optuna_study.tell(claim.trial.number, value, skip_if_finished=True)

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        running = quiet_optuna().trial.TrialState.RUNNING
        claimed = {"index", "owner", "fractions"}
        return [trial for trial in self._trials(running) if claimed <= trial.user_attrs.keys()]

    def _trials(self, state: optuna.trial.TrialState) -> list[optuna.trial.FrozenTrial]:
        with plainly():
            return self.optuna_study.get_trials(deepcopy=False, states=(state,))

    def _read(self, trial: optuna.trial.FrozenTrial) -> Candidate:
        try:
            return Candidate.from_dict(trial.user_attrs["result"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(
                f"Trial {trial.number} of the study '{self.optuna_study.study_name}' holds no "
                "candidate of this version of capsprune; give another --storage, or remove the "
                "file."
            ) from error
