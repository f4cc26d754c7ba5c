"""The study: what a search has tried, kept by Optuna in a database.

Each rung of successive halving is one Optuna study. A candidate is one trial: it is claimed when it
is proposed, with its fractions, and finished with its score. What was claimed but not finished when
a process died is taken up again with the same fractions. One run's own study is an SQLite file in
the run; a database that several machines reach can hold it instead, in which each claims what the
others have not.
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
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.database import open_file, open_url, plainly
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

    trial: int
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
        self._alive: set[int] = set()
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
        self._storage.remove_session()
        if self.in_database:
            self._storage.engine.dispose()

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
        found = {study.study_name: study for study in self._storage.get_all_studies()}
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
                alive = list(self._alive)
            for trial in alive:
                # A database that is away for a moment must not end the search by this.
                with contextlib.suppress(Exception):
                    self._storage.record_heartbeat(trial)
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
        with plainly():
            self._id = self._storage.get_study_id_from_name(study.study_name)
        self._finished: dict[int, Candidate] = {}
        self._seen: set[int] = set()
        self._params_table: Any = None

    def finished(self) -> dict[int, Candidate]:
        """Give the finished candidates by number, in the order in which they finished."""
        complete = quiet_optuna().trial.TrialState.COMPLETE
        new = [trial for trial in self._trials(complete) if trial._trial_id not in self._seen]
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            self._seen.add(trial._trial_id)
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
            claim = Claim(
                trial._trial_id, trial.user_attrs["index"], tuple(trial.user_attrs["fractions"])
            )
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
            trial = self._storage.create_new_trial(
                self._id,
                template_trial=optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, user_attrs=attributes
                ),
            )
            claim = Claim(trial, index, fractions)
            if self._study.shared:
                rivals = [t for t in self._running() if t.user_attrs["index"] == index]
                first = min(rivals, key=lambda t: t.number)._trial_id
                if index in self.finished() or first != trial:
                    self._storage.set_trial_state_values(trial, optuna.trial.TrialState.FAIL)
                    return None
            self._begin(claim)
            if self._study.in_database:
                self._show_parameters(claim, max_rate)
        return claim

    def finish(self, claim: Claim, candidate: Candidate) -> None:
        """Keep the result of a claimed candidate."""
        optuna = quiet_optuna()
        # Another process may have taken this one for dead, and the candidate for its own.
        with plainly(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial, "result", candidate.to_dict())
            self._complete(claim, candidate)

    def release_dead(self) -> None:
        """Give up the claims of processes that gave no sign of life for a while."""
        if self._study.shared:
            with plainly():
                quiet_optuna().storages.fail_stale_trials(self.optuna_study)

    def _begin(self, claim: Claim) -> None:
        if self._study.shared:
            self._storage.record_heartbeat(claim.trial)
            with self._study._lock:
                self._study._alive.add(claim.trial)

    def _complete(self, claim: Claim, candidate: Candidate) -> None:
        optuna = quiet_optuna()
        with self._study._lock:
            self._study._alive.discard(claim.trial)
        value = candidate.score if candidate.feasible else -candidate.violation
        self._storage.set_trial_state_values(claim.trial, optuna.trial.TrialState.COMPLETE, [value])

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

    def _show_parameters(self, claim: Claim, max_rate: float) -> None:
        """Write the fractions as parameters too, for Optuna's dashboard.

        Optuna would write them one by one, which takes 2 ms each and 80 for a ResNet-50: more than
        a candidate of the first rung takes on a GPU. So they go into its table at once.
        """
        import sqlalchemy

        optuna = quiet_optuna()
        if self._params_table is None:
            self._params_table = sqlalchemy.Table(
                "trial_params", sqlalchemy.MetaData(), autoload_with=self._storage.engine
            )
        distribution = optuna.distributions.distribution_to_json(
            optuna.distributions.FloatDistribution(0.0, max_rate)
        )
        rows = [
            {
                "trial_id": claim.trial,
                "param_name": f"group{group:03d}",
                "param_value": fraction,
                "distribution_json": distribution,
            }
            for group, fraction in enumerate(claim.fractions)
        ]
        with self._storage.engine.begin() as connection:
            connection.execute(sqlalchemy.insert(self._params_table), rows)
