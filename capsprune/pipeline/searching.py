"""The search inside the stage `prune`: its target, its data, its study, and what it says."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsprune.backbones.registry import backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.head import head_of
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import DataSplits
from capsprune.errors import StrategyError
from capsprune.files import read_json, read_text, write_text
from capsprune.options import PruneOptions
from capsprune.pipeline.latency import check_smallest, flops_within, latency_limit
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.cost import owned_positions
from capsprune.pruning.evaluation import Evaluator, LatencyLimit
from capsprune.pruning.layers import prunable_layers
from capsprune.pruning.limits import Bottleneck
from capsprune.pruning.search import SearchResult, SearchSettings, search
from capsprune.pruning.space import SearchSpace
from capsprune.pruning.study import Study
from capsprune.pruning.target import Target

#: Held-out training images that score a candidate, at most.
_SCORING_IMAGES = 2000
#: From so many candidates on, successive halving is the default, with this reduction factor.
_MANY, _REDUCTION_FACTOR = 100, 4
_MEASURED = "latency.json"
_OWNER = "owner.txt"
#: Options that change nothing before the fine-tuning: searches that differ by them alone are one.
_AFTER_THE_SEARCH = frozenset({"epochs", "lr", "precision"})
#: What came later and says nothing of a search: options that the baseline decides, from which every
#: search begins, and the digest of a strategy, for which there is none.
_BESIDE_THE_SEARCH = frozenset({"split_seed", "value_range", "background", "strategy_sha256"})


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


def check_options(options: PruneOptions) -> PruneOptions:
    """Fill in what follows from other options.

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
    target = target.complete()
    if options.sampler == "eagleeye" and options.primary_caps is not None:
        raise StrategyError(
            "Rejection sampling as good as never finds a given number of primary capsules; give "
            "--sampler random with --primary-caps."
        )
    factor = options.reduction_factor
    if factor is None:
        factor = _REDUCTION_FACTOR if options.candidates >= _MANY else 1
    return options.model_copy(update={**target.given, "reduction_factor": factor})


def find_target(
    options: PruneOptions, session: Session, network: Prunable, latency: LatencyLimit | None
) -> Target:
    """Return the sizes that a search is to meet, those included that must be measured.

    Where a latency is the only size, the FLOPs that it allows are measured on strategies that
    remove the same fraction of every group.

    Args:
        options: of the stage.
        session: of the command.
        network: the unpruned one.
        latency: the limit that they ask for, if any.

    Raises:
        StrategyError: if the latency is out of reach.
    """
    target = Target.of(options)
    if latency is None:
        return target
    fastest = check_smallest(latency, options, session, network)
    if target.is_computed:
        return target
    flops = read_measured_flops(session.run.work("pruned"), options)
    return replace(target, flops=flops or flops_within(latency, options, session, network, fastest))


def search_space(options: PruneOptions, target: Target, network: Prunable) -> SearchSpace:
    """Return the space of the strategies that have the sizes asked for.

    Raises:
        StrategyError: if the target is out of reach.
    """
    bottleneck = None
    if target.primary_caps is not None:
        bottleneck = bottleneck_of(network, options.d1)
    return target.search_space(network.cost, options.max_rate, options.round_to, bottleneck)


def check_reach(options: PruneOptions, session: Session, network: Prunable) -> None:
    """Check that some strategy has the size asked for, as far as an untrained network tells.

    Raises:
        StrategyError: if the target is out of reach.
    """
    target = Target.of(options)
    if target.is_computed:
        search_space(options, target, network)
    if (latency := latency_limit(options, session, network)) is not None:
        check_smallest(latency, options, session, network)


def check_storage(options: PruneOptions) -> None:
    """Check that the database of a search can be used.

    Raises:
        StudyError: if it cannot be opened.
    """
    if options.storage is not None and options.strategy is None:
        Study(options.storage).close()


def write_measured_flops(work: Path, options: PruneOptions, target: Target) -> None:
    """Note which FLOPs a latency allows: a search that goes on would measure something else."""
    if target.latency is not None:
        noted = {**_measured(options), "flops": target.flops}
        write_text(work / _MEASURED, json.dumps(noted))


def read_measured_flops(work: Path, options: PruneOptions) -> float | None:
    """Read what an interrupted search for the same latency noted."""
    try:
        noted = read_json(work / _MEASURED)
        measured, flops = {key: noted[key] for key in _measured(options)}, float(noted["flops"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return flops if measured == _measured(options) and 0 < flops <= 1 else None


def _measured(options: PruneOptions) -> dict[str, Any]:
    """Return the options that decide which FLOPs a latency allows."""
    return {key: getattr(options, key) for key in ("latency", "head", "d1")}


def bottleneck_of(network: Prunable, d1: int) -> Bottleneck:
    """Find how the trunk's output channels follow from the channels kept in each group.

    They are what the first layer behind the trunk takes in, once for each position that a flatten
    leaves.

    Raises:
        StrategyError: if the trunk has fewer channels than a capsule has values.
    """
    channels, _ = trunk_output(trunk_of(network.name, network.model), network.image_size)
    if channels < d1:
        raise StrategyError(
            f"The trunk of {network.name} has {channels} channels, fewer than the {d1} values of a "
            "primary capsule; give a lower --d1."
        )
    trunk = backbone(network.name).trunk_children
    behind, layer = next(
        (layer_name, layer)
        for layer_name, layer in prunable_layers(network.model).items()
        if layer.produces
        and not any(layer_name == child or layer_name.startswith(f"{child}.") for child in trunk)
    )
    repeats = layer.size("in") // channels
    owned, unowned = owned_positions(layer, behind, "in", network.dependencies)
    per_channel = (owned // repeats).astype(np.int64)
    return Bottleneck(per_channel, int(unowned) // repeats, d1)


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
    options: PruneOptions,
    session: Session,
    stage: Stage,
    work: Path,
    network: Prunable,
    space: SearchSpace,
    rankings: list[Tensor],
    data: SearchData,
    latency: LatencyLimit | None,
) -> SearchResult:
    """Search, showing a bar, and say what was found and where the time went."""
    progress = session.progress
    assert options.reduction_factor is not None
    with _open_study(options, session, stage, work) as study:
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

            found = search(
                Evaluator(
                    network.model,
                    network.dependencies,
                    rankings,
                    data.calibration,
                    data.scoring,
                    head_of(network.model).objective,
                    latency,
                ),
                space,
                SearchSettings(
                    options.candidates,
                    session.run.seed,
                    options.sampler,
                    options.reduction_factor,
                ),
                study=study,
                workers=options.workers,
                folder=work,
                on_candidate=show,
            )
    _tell(session, found)
    return found


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
    seconds = found.seconds()
    total = sum(seconds.values())
    parts = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items() if value)
    progress.detail(f"A candidate took {total / len(found.candidates):.2f} s: {parts}")


def _open_study(options: PruneOptions, session: Session, stage: Stage, work: Path) -> Study:
    # Whoever asks for the same of the same baseline works on the same study, and nobody else.
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
