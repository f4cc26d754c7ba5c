"""The search inside a stage that prunes: its target, its data, its study, and what it says."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from capsprune.capsules.head import head_of
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import DataSplits
from capsprune.errors import StrategyError
from capsprune.files import read_json, read_text, write_text
from capsprune.options import SearchOptions
from capsprune.pipeline.latency import check_smallest, flops_within
from capsprune.pipeline.prunable import Prunable, UntrainedHead
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.progress import Progress
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.channels import Compensation
from capsprune.pruning.evaluation import Evaluator, LatencyLimit
from capsprune.pruning.search import (
    OnCandidate,
    SearchResult,
    SearchSettings,
    find_smallest,
    search,
)
from capsprune.pruning.space import Fractions, SearchSpace
from capsprune.pruning.study import Study
from capsprune.pruning.target import Target

#: Held-out training images that score a candidate, at most.
_SCORING_IMAGES = 2000
#: From so many candidates on, successive halving is the default, with this reduction factor.
_MANY, _REDUCTION_FACTOR = 100, 4
#: Sizes that a strategy has exactly, or not at all.
_EXACT = ("primary_caps", "capsules")
_MEASURED = "latency.json"
_OWNER = "owner.txt"
#: Options that change nothing before the fine-tuning: searches that differ by them alone are one.
_AFTER_THE_SEARCH = frozenset({"epochs", "lr", "precision", "freeze"})
#: What came later and says nothing of a search: options that the network decides from which every
#: search begins, where that lies, and the digest of a strategy, for which there is none.
_BESIDE_THE_SEARCH = frozenset(
    {"split_seed", "value_range", "background", "strategy_sha256", "checkpoint"}
)

OptionsT = TypeVar("OptionsT", bound=SearchOptions)


@dataclass(frozen=True)
class SearchData:
    """Images that stay in memory, on the device."""

    #: Training images with labels, for the batch norm statistics and the Taylor criterion.
    labelled: list[tuple[Tensor, Tensor]]
    #: Held-out training images with labels, for the score.
    scoring: list[tuple[Tensor, Tensor]]

    @property
    def calibration(self) -> list[Tensor]:
        """The training images alone."""
        return [images for images, _ in self.labelled]


@dataclass(frozen=True)
class Pruning:
    """What the search of a stage that prunes, and what comes after it, need."""

    options: SearchOptions
    stage: Stage
    #: The stage's working directory.
    work: Path
    network: Prunable
    #: For each group its channels, those to keep longest first.
    rankings: list[Tensor]
    #: Name of the criterion that ranked them.
    criterion: str
    data: SearchData
    latency: LatencyLimit | None = None
    #: The head, of a whole network, as its strategies name it.
    head: str | None = None
    #: The criterion that ranked primary capsules, and what makes up for those that go.
    capsule_criterion: str | None = None
    compensate: Compensation | None = None

    @property
    def evaluator(self) -> Evaluator:
        """What tries its candidates."""
        return Evaluator(
            self.network.model,
            self.network.dependencies,
            self.rankings,
            self.data.calibration,
            self.data.scoring,
            head_of(self.network.model).objective,
            self.latency,
            self.network.norms,
            self.compensate,
        )


def check_options(options: OptionsT, default: Target | None = None) -> OptionsT:
    """Fill in what follows from other options.

    Args:
        options: of the stage.
        default: the sizes where none is asked for; None for half of the FLOPs.

    Raises:
        StrategyError: if two options exclude each other.
    """
    if options.latency is not None and options.workers > 1:
        raise StrategyError(
            "--latency is measured while nothing else computes, so one candidate at a time; give "
            "--workers 1."
        )
    target = Target.of(options)
    if options.strategy is not None:
        target.refuse_any("--strategy has its size already", "--strategy")
        return options
    target = target.complete(default)
    exact = [name for name in _EXACT if name in target.given]
    if options.sampler == "eagleeye" and exact:
        raise StrategyError(
            "Rejection sampling as good as never finds a given number of primary capsules; give "
            f"--sampler random with --{exact[0].replace('_', '-')}."
        )
    factor = options.reduction_factor
    if factor is None:
        factor = _REDUCTION_FACTOR if options.candidates >= _MANY else 1
    return options.model_copy(update={**target.given, "reduction_factor": factor})


def find_target(
    options: SearchOptions, stage: Stage, network: Prunable, latency: LatencyLimit | None
) -> Target:
    """Return the sizes that a search is to meet, those included that must be measured.

    Where a latency is the only size, the FLOPs that it allows are measured on strategies that
    remove the same fraction of every group.

    Args:
        options: of the stage.
        stage: that is worked on.
        network: the unpruned one.
        latency: the limit that they ask for, if any.

    Raises:
        StrategyError: if the latency is out of reach.
    """
    target = Target.of(options)
    if latency is None:
        return target
    session = stage.session
    space = check_smallest(latency, options, session, network)
    if target.is_computed:
        return target
    work, head = session.run.work(stage.name), network.measured_with
    flops = read_measured_flops(work, target.latency, head)
    return replace(target, flops=flops or flops_within(latency, session, network, space))


def check_storage(options: SearchOptions) -> None:
    """Check that the database of a search can be used.

    Raises:
        StudyError: if it cannot be opened.
    """
    if options.storage is not None and options.strategy is None:
        Study(options.storage).close()


def write_measured_flops(work: Path, target: Target, head: UntrainedHead | None) -> None:
    """Note which FLOPs a latency allows: a search that goes on would measure something else.

    Args:
        work: the stage's working directory.
        target: with the FLOPs that were found, if it has a latency.
        head: with which the latency is measured.
    """
    if target.latency is not None:
        noted = {**_measured(target.latency, head), "flops": target.flops}
        write_text(work / _MEASURED, json.dumps(noted))


def read_measured_flops(
    work: Path, latency: float | None, head: UntrainedHead | None
) -> float | None:
    """Read what an interrupted search for the same latency noted."""
    due = _measured(latency, head)
    try:
        noted = read_json(work / _MEASURED)
        measured, flops = {key: noted[key] for key in due}, float(noted["flops"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return flops if measured == due and 0 < flops <= 1 else None


def _measured(latency: float | None, head: UntrainedHead | None) -> dict[str, Any]:
    """Return what decides which FLOPs a latency allows, as `_MEASURED` has it."""
    noted = {} if head is None else {"head": head.kind, "d1": head.d1}
    return {"latency": latency, **noted}


def load_batches(
    session: Session, splits: DataSplits, preprocessing: Preprocessing, count: int, batch_size: int
) -> SearchData:
    """Prepare the images of a search once, on the device.

    Args:
        session: of the command.
        splits: the run's data.
        preprocessing: what becomes of the images.
        count: batches for the batch norm statistics, of training images shuffled by the seed.
        batch_size: images in each of them.
    """
    order = torch.randperm(
        len(splits.train), generator=torch.Generator().manual_seed(session.run.seed)
    )
    chosen = splits.train.select(order[: count * batch_size].tolist())
    batches = list(session.batches(chosen, preprocessing, batch_size))
    scored = splits.validation.select(range(min(_SCORING_IMAGES, len(splits.validation))))
    return SearchData(
        # A single image left over cannot be normalised where the feature map is one position.
        [(images, labels) for images, labels in batches if len(images) > 1],
        list(session.batches(scored, preprocessing)),
    )


def find_strategy(
    pruning: Pruning, space: SearchSpace, listed: Fractions | None = None
) -> SearchResult:
    """Search, showing a bar, and say what was found and where the time went.

    Args:
        pruning: what is searched.
        space: of the strategies.
        listed: all of them, where they are few, [n, G].
    """
    options, session = pruning.options, pruning.stage.session
    assert options.reduction_factor is not None
    settings = SearchSettings(
        options.candidates, session.run.seed, options.sampler, options.reduction_factor
    )
    with _watched(pruning) as (study, show):
        found = search(
            pruning.evaluator,
            space,
            settings,
            study=study,
            workers=options.workers,
            folder=pruning.work,
            on_candidate=show,
            listed=listed,
        )
    _tell(session, found)
    return found


def find_smallest_strategy(pruning: Pruning, space: SearchSpace, tolerance: float) -> SearchResult:
    """Find the smallest network within a tolerance, showing a bar, and say which it is.

    Args:
        pruning: what is searched.
        space: of all strategies.
        tolerance: points of validation accuracy that may be lost.
    """
    with _watched(pruning) as (study, show):
        found = find_smallest(
            pruning.evaluator,
            space,
            pruning.network.kinds,
            tolerance,
            study=study,
            on_candidate=show,
        )
    progress, unpruned = pruning.stage.session.progress, found.candidates[0]
    progress.say(
        f"The smallest of {len(found.candidates)} candidates within {tolerance:g} points of "
        f"{unpruned.score:.2%} on held-out training images scores {found.best.score:.2%}"
    )
    _tell_time(progress, found)
    return found


@contextmanager
def _watched(pruning: Pruning) -> Iterator[tuple[Study, OnCandidate]]:
    """Open the study of a search, and a bar.

    Yields:
        The study, and what shows a candidate that was tried.
    """
    progress = pruning.stage.session.progress
    with open_study(pruning) as study:
        before = study.rung(0).finished()
        if before:
            progress.say(f"The search goes on after {len(before)} candidates")
        best: Candidate | None = max(before.values(), key=lambda c: c.rank, default=None)
        with progress.bar("Candidates") as bar:

            def show(candidate: Candidate, done: int, total: int) -> None:
                nonlocal best
                if best is None or candidate.rank > best.rank:
                    best = candidate
                note = f"best {best.score:.2%}" if best.feasible else "none within --latency yet"
                bar(done, total, f"rung {best.rung + 1}, {note}" if best.rung else note)

            yield study, show


def _tell(session: Session, found: SearchResult) -> None:
    progress, best = session.progress, found.best
    rungs = [str(rung.candidates) for rung in found.plan]
    how = f" (rungs of {', '.join(rungs)})" if len(rungs) > 1 else ""
    progress.say(
        f"Best of {rungs[0]} candidates{how}: {best.score:.2%} on held-out training images"
        + (f" ({found.ties} equal, told apart by their loss)" if found.ties > 1 else "")
        + (f", {best.latency_ms:.3g} ms" if best.latency_ms is not None else "")
    )
    too_slow = sum(not candidate.feasible for candidate in found.candidates)
    if too_slow:
        progress.say(f"{too_slow} candidates were slower than --latency and are left out")
    _tell_time(progress, found)


def _tell_time(progress: Progress, found: SearchResult) -> None:
    seconds = found.seconds()
    total = sum(seconds.values())
    parts = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items() if value)
    progress.detail(f"A candidate took {total / len(found.candidates):.2f} s: {parts}")


def open_study(pruning: Pruning) -> Study:
    """Open the study of a stage's search.

    Whoever asks for the same of the same network works on the same study, and nobody else.

    Raises:
        StudyError: if the database cannot be opened.
    """
    options, stage, work = pruning.options, pruning.stage, pruning.work
    session = stage.session
    ignored = _AFTER_THE_SEARCH | _BESIDE_THE_SEARCH
    if options.latency is None:
        ignored |= {"head"}  # which is nowhere but in what is measured
    asked = {key: value for key, value in stage.asked.items() if key not in ignored}
    identity = json.dumps([asked, stage.parent, session.run.seed], sort_keys=True)
    name = f"capsprune-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if options.storage is None:
        return Study.local(work / "study.db", name)
    begun = (work / _OWNER).exists()
    owner = _read_owner(work)
    if owner is None:
        owner = uuid.uuid4().hex
        write_text(work / _OWNER, owner)
    # A search that was interrupted goes on, even where it was to be done again.
    return Study(options.storage, name, owner=owner, anew=session.overwrite and not begun)


def _read_owner(work: Path) -> str | None:
    """Read the name under which an interrupted search worked, if there was one."""
    try:
        owner = read_text(work / _OWNER).strip()
    except (OSError, ValueError):
        return None
    return owner if re.fullmatch("[0-9a-f]{32}", owner) else None
