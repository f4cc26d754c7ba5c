"""The search for a strategy: propose, try, keep what is promising, pick the best.

A candidate is tried as EagleEye does it: its batch norm statistics are recomputed on training
images, then it is scored on others (Li et al., ECCV 2020). With successive halving (Jamieson and
Talwalkar, AISTATS 2016) all candidates are tried on few batches first; the best one in so many is
tried on that many times as many batches, and so on up to all of them. Only scores of one rung are
compared.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from capsprune.errors import StrategyError
from capsprune.pruning.bisection import Bisection
from capsprune.pruning.candidate import PARTS, Candidate
from capsprune.pruning.evaluation import Evaluator, Outcome, Task
from capsprune.pruning.names import SAMPLERS, SamplerMaker
from capsprune.pruning.samplers import Sampler, make_sampler
from capsprune.pruning.space import Fractions, SearchSpace
from capsprune.pruning.study import Claim, Rung, Study
from capsprune.pruning.workers import InProcess, ProcessWorkers, Workers

#: Called after each candidate with it, and how many tries of all rungs are done and planned.
OnCandidate = Callable[[Candidate, int, int], None]

#: Seconds between two looks at what other machines did.
_POLL = 1.0


@dataclass(frozen=True)
class Plan:
    """How many candidates one rung tries, and on how much."""

    candidates: int
    #: Batches for the batch norm statistics, and for the score.
    calibration: int
    scoring: int


@dataclass(frozen=True)
class SearchSettings:
    """How a search goes about it."""

    #: How many candidates to try.
    candidates: int
    #: Of the proposals.
    seed: int = 0
    #: Who proposes: one of `capsprune.pruning.names.SAMPLERS` by name, or what makes one.
    sampler: str | SamplerMaker = "random"
    #: Of successive halving, 1 for none; see `plan_rungs`.
    reduction_factor: int = 1


@dataclass(frozen=True)
class SearchResult:
    """Every try, and the candidate to take."""

    #: By rung, then by number. A candidate that was promoted appears once for each of its rungs.
    candidates: list[Candidate]
    best: Candidate
    plan: list[Plan]

    def seconds(self) -> dict[str, float]:
        """Sum the seconds by part over all tries."""
        return {part: sum(c.seconds.get(part, 0.0) for c in self.candidates) for part in PARTS}

    @property
    def ties(self) -> int:
        """How many candidates of the last rung have the best one's score."""
        return sum(
            c.rung == self.best.rung and c.feasible and c.score == self.best.score
            for c in self.candidates
        )


class ListedSampler:
    """Proposes what stands in a list, one after the other."""

    def __init__(self, listed: Sequence[Fractions] | Fractions) -> None:
        """Take the strategies, [n, G]."""
        self.listed = [*listed]

    def propose(self, index: int) -> Fractions:
        """Return the strategy of this number."""
        return self.listed[index]

    def observe(self, index: int, fractions: Fractions, objective: float) -> None:
        """Learn nothing."""


def plan_rungs(candidates: int, calibration: int, scoring: int, factor: int = 1) -> list[Plan]:
    """Plan successive halving.

    Args:
        candidates: to try in the first rung.
        calibration: batches that a full try takes for the batch norm statistics.
        scoring: batches that a full try takes for the score.
        factor: one in this many is promoted, to this many times the batches; 1 for one rung of full
            tries.

    Returns:
        The rungs. The last one is of full tries. A rung never repeats the batches of the one before
        it, nor tries fewer than one candidate.
    """
    if factor <= 1:
        return [Plan(candidates, calibration, scoring)]
    levels = 0
    while factor**levels < calibration and factor ** (levels + 1) <= candidates:
        levels += 1
    plans: list[Plan] = []
    for level in range(levels + 1):
        share = factor ** (levels - level)
        plan = Plan(
            max(1, candidates // factor**level),
            max(1, round(calibration / share)),
            max(1, round(scoring / share)),
        )
        # Where one batch is the least, two rungs may come out alike: the first of them is enough.
        alike = plans and (plan.calibration, plan.scoring) == (
            plans[-1].calibration,
            plans[-1].scoring,
        )
        if not alike:
            plans.append(plan)
    return plans


def search(
    evaluator: Evaluator,
    space: SearchSpace,
    settings: SearchSettings,
    *,
    study: Study | None = None,
    workers: int = 1,
    folder: Path | None = None,
    on_candidate: OnCandidate | None = None,
    listed: Fractions | None = None,
) -> SearchResult:
    """Try candidates and take the best.

    Each proposal follows from the seed, the candidate's number, and what is finished by then. So
    with one worker the result follows from the seed, interrupted or not; with `random` and
    `eagleeye` it does with any number of workers.

    Args:
        evaluator: tries a candidate. Where it has a limit of latency, there must be one worker.
        space: where candidates are drawn from.
        settings: how many to try, and who proposes them.
        study: where candidates are kept; those that it has are not tried again. None to forget
            them.
        workers: processes that try candidates.
        folder: for what the workers share; None for the system's temporary one.
        on_candidate: called after each candidate.
        listed: strategies to try, [n, G], all of them and no others; None to let a sampler
            propose.

    Raises:
        StrategyError: if the target cannot be met.
        StudyError: if the study cannot be used, or is of another search.
    """
    candidates = settings.candidates if listed is None else len(listed)
    if candidates < 1:
        raise ValueError("A search needs at least one candidate.")
    with _kept(study) as study:
        study.require(
            {
                **_described(space),
                "sampler": SAMPLERS.name_of(settings.sampler) if listed is None else "all",
                "seed": settings.seed,
                "reduction_factor": settings.reduction_factor,
                "latency_ms": evaluator.latency.limit_ms if evaluator.latency else None,
            }
        )
        sampler = (
            make_sampler(settings.sampler, space, settings.seed)
            if listed is None
            else ListedSampler(listed)
        )
        plan = plan_rungs(
            candidates,
            len(evaluator.calibration),
            len(evaluator.scoring),
            settings.reduction_factor,
        )
        pool: Workers = (
            InProcess(evaluator) if workers == 1 else ProcessWorkers(evaluator, workers, folder)
        )
        try:
            found = _climb(_Search(space, study, pool, sampler, plan, on_candidate))
        finally:
            pool.close()
        study.complete()
        return found


def find_smallest(
    evaluator: Evaluator,
    space: SearchSpace,
    kinds: Sequence[str],
    tolerance: float,
    *,
    study: Study | None = None,
    on_candidate: OnCandidate | None = None,
) -> SearchResult:
    """Find the smallest network that scores as well as the unpruned one, but for a tolerance.

    The first candidate is the unpruned network; those that follow are `Bisection`'s, one after the
    other, each tried in full.

    Args:
        evaluator: tries a candidate.
        space: says how much may go, and which units go together; it has no limits and counts.
        kinds: what each group is of (`ChannelGroup.kind`), [G].
        tolerance: points of the score that may be lost.
        study: as in `search`.
        on_candidate: called after each candidate, with how many it takes at most.

    Returns:
        Every try, the unpruned network first, and the smallest one that scored well enough.

    Raises:
        StudyError: if the study cannot be used, or is of another search.
    """
    with _kept(study) as study:
        study.require({**_described(space), "sampler": "bisection", "tolerance": tolerance})
        rung, plan = study.rung(0), Plan(1, len(evaluator.calibration), len(evaluator.scoring))
        proposed = ListedSampler([])
        steps = _Search(space, study, InProcess(evaluator), proposed, [plan], on_candidate)

        def try_next(fractions: Fractions) -> Candidate:
            index = len(tried)
            proposed.listed.append(fractions)
            _try_all(steps, rung, plan, {index: None})
            tried.append(rung.finished()[index])
            return tried[-1]

        tried: list[Candidate] = []
        unpruned = try_next(np.zeros(space.groups))
        bisection = Bisection(space, kinds, unpruned.score - tolerance / 100)
        steps.most = 1 + bisection.most_candidates
        while not bisection.finished:
            index = len(tried)
            candidate = try_next(bisection.propose(index))
            bisection.observe(index, np.array(candidate.fractions), candidate.objective)
        study.complete()
        return SearchResult(
            tried, tried[bisection.best_index or 0], [replace(plan, candidates=len(tried))]
        )


def _kept(study: Study | None) -> contextlib.AbstractContextManager[Study]:
    """Return the study that is given, to be left open, or one that is forgotten."""
    return Study.in_memory() if study is None else contextlib.nullcontext(study)


def _described(space: SearchSpace) -> dict[str, Any]:
    """Return what a study notes of a space."""
    return {
        "target": space.describe(),
        "max_rate": space.max_rate,
        "round_to": space.round_to,
        "channels": [int(count) for count in space.cost.channels],
        "macs": space.cost.unpruned_macs,
    }


@dataclass
class _Search:
    """What the rungs of one search share."""

    space: SearchSpace
    study: Study
    pool: Workers
    sampler: Sampler
    plan: list[Plan]
    on_candidate: OnCandidate | None
    done: int = 0
    #: How many tries it takes at most, where that is not planned.
    most: int | None = None

    @property
    def total(self) -> int:
        return self.most or sum(rung.candidates for rung in self.plan)


def _climb(search: _Search) -> SearchResult:
    """Try the candidates of one rung after the other."""
    tried: list[Candidate] = []
    promoted: list[Candidate] | None = None
    for number, plan in enumerate(search.plan):
        wanted: dict[int, Candidate | None] = (
            dict.fromkeys(range(plan.candidates))
            if promoted is None
            else {c.index: c for c in sorted(promoted, key=lambda c: c.index)}
        )
        rung = search.study.rung(number)
        _try_all(search, rung, plan, wanted)
        finished = rung.finished()
        results = [finished[index] for index in wanted]
        tried += results
        # Ties beyond the loss go to the lower number.
        order = sorted(results, key=lambda c: (*c.rank, -c.index), reverse=True)
        feasible = [candidate for candidate in order if candidate.feasible]
        if not feasible:
            fastest = min(candidate.latency_ms or 0.0 for candidate in order)
            raise StrategyError(
                f"None of {len(order)} candidates meets the limit of latency: the fastest takes "
                f"{fastest:.3g} ms; give a higher --latency, or a lower --flops."
            )
        if number + 1 < len(search.plan):
            promoted = feasible[: search.plan[number + 1].candidates]
            # Where few are feasible, the rungs above are smaller than planned.
            search.plan[number + 1] = replace(search.plan[number + 1], candidates=len(promoted))
    return SearchResult(tried, feasible[0], search.plan)


def _try_all(search: _Search, rung: Rung, plan: Plan, wanted: dict[int, Candidate | None]) -> None:
    """Try what a rung wants and has not; wait for what others are trying.

    Args:
        search: what the rungs share.
        rung: where the results go.
        plan: on how much each is tried.
        wanted: the candidates by number, with what the rung before says of them.
    """
    pool, learns = search.pool, rung.number == 0
    claims: dict[int, Claim] = {}
    observed: set[int] = set()
    waiting = [claim for claim in rung.left_over() if claim.index in wanted]
    overhead = time.perf_counter()  # when the time began that belongs to no candidate yet

    def observe() -> None:
        """Show the sampler what is new, whoever finished it."""
        for index, candidate in rung.finished().items():
            if index in observed:
                continue
            observed.add(index)
            if learns:
                fractions = np.array(candidate.fractions)
                search.sampler.observe(index, fractions, candidate.objective)

    def next_claim() -> Claim | None:
        if waiting:
            return waiting.pop(0)
        observe()
        taken = rung.taken()
        for index, before in wanted.items():
            if index in taken:
                continue
            proposed = (
                tuple(float(f) for f in search.sampler.propose(index))
                if before is None
                else before.fractions
            )
            if claim := rung.claim(index, proposed, float(search.space.max_rates.max())):
                return claim
        return None

    already = sum(index in wanted for index in rung.finished())
    search.done += already
    while True:
        while pool.busy < pool.count and (claim := next_claim()):
            claims[claim.index] = claim
            before = wanted[claim.index]
            pool.submit(
                Task(
                    claim.index,
                    search.space.kept(np.array(claim.fractions)),
                    plan.calibration,
                    plan.scoring,
                    before.latency_ms if before else None,
                )
            )
        if not pool.busy:
            if all(index in rung.finished() for index in wanted):
                break
            # Others are at work on what is left: theirs to finish, unless they have died.
            rung.release_dead()
            time.sleep(_POLL)
            continue
        spent = time.perf_counter() - overhead
        results = pool.collect()
        overhead = time.perf_counter()
        for task, outcome in results:
            claim = claims.pop(task.index)
            fractions = np.array(claim.fractions)
            outcome.seconds["other"] += spent / len(results)
            candidate = _describe(search.space, claim, fractions, rung.number, outcome)
            rung.finish(claim, candidate)
            search.done += 1
            if search.on_candidate:
                search.on_candidate(candidate, search.done, search.total)
    observe()


def _describe(
    space: SearchSpace, claim: Claim, fractions: Fractions, rung: int, outcome: Outcome
) -> Candidate:
    kept = space.kept(fractions)
    macs = int(space.cost.macs(kept))
    return Candidate(
        index=claim.index,
        fractions=claim.fractions,
        macs=macs,
        flops_ratio=macs / space.reference.macs,
        parameters=int(space.cost.parameters(kept)),
        score=outcome.score,
        loss=outcome.loss,
        rung=rung,
        latency_ms=outcome.latency_ms,
        violation=outcome.violation,
        seconds=outcome.seconds,
    )
