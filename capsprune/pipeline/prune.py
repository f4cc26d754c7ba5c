"""The stage `prune`: search for a strategy, shrink the baseline by it, fine-tune what is left."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from capsprune.backbones.registry import backbone
from capsprune.checkpoint import Checkpoint, describe, load_checkpoint, read_architecture
from capsprune.data.sources import DataSplits
from capsprune.errors import RunError
from capsprune.inspection import checkpoint_costs
from capsprune.pipeline.fitting import fit_network, score_network, training_summary
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.pipeline.train import train
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.cost import CostModel
from capsprune.pruning.groups import Dependencies, find_groups
from capsprune.pruning.search import (
    Candidate,
    CandidateFile,
    SearchResult,
    SearchSpace,
    search,
)
from capsprune.pruning.shrink import l1_ranking, shrink
from capsprune.pruning.strategy import Strategy, read_strategy
from capsprune.recipe import PruneOptions, TrainOptions
from capsprune.run import StageRecord
from capsprune.training.schedule import default_schedule

#: Held-out training images that score a candidate, at most.
_SCORING_IMAGES = 2000


def prune(options: PruneOptions, session: Session) -> StageRecord:
    """Prune the baseline to a part of its FLOPs; train it first where the run has none.

    Raises:
        CapspruneError: if the target or the strategy cannot be met, or the stage is finished with
            other options.
    """
    run, progress = session.run, session.progress
    baseline = _baseline(options, session)
    described = read_architecture(run.path("baseline"))
    size = described.data.image_size
    stage = Stage.of(
        session,
        "pruned",
        options,
        baseline.id,
        model=described.model,
        data=described.data.name,
        image_size=size,
    )
    if record := stage.done():
        return record

    model = load_checkpoint(run.path("baseline")).network
    dependencies = find_groups(
        model, classifier=backbone(described.model).classifier, image_size=size
    )
    cost = CostModel.build(model, dependencies, size)
    strategy: Strategy | None = None
    if options.strategy is not None:
        strategy = read_strategy(options.strategy, described.model)
        strategy.kept(dependencies)  # raises if it does not fit
    else:
        space = SearchSpace.around(cost, options.flops, options.max_rate, options.round_to)
    splits = session.data(described.data.name, options.data_root, size)
    device = session.fabric.device

    work = stage.begin(splits)
    schedule = default_schedule("finetune", described.data.name).changed(
        options.epochs, options.batch_size, options.lr
    )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibration = _calibration_batches(
        session, splits, size, options.bn_batches, schedule.batch_size
    )
    storage = CandidateFile(work / "candidates.jsonl")
    summary: dict[str, Any] = {"model": described.model, "data": described.data.name}
    if strategy is None:
        scored = splits.validation.select(range(min(_SCORING_IMAGES, len(splits.validation))))
        found = _search(
            session,
            model,
            dependencies,
            space,
            candidates=options.candidates,
            calibration=calibration,
            scoring=list(session.batches(scored, size)),
            storage=storage,
        )
        fractions = dict(zip(dependencies.names, found.best.fractions, strict=True))
        strategy = Strategy(described.model, options.flops, fractions, options.round_to)
        summary |= {
            "candidates": len(found.candidates),
            "best_candidate": found.best.index,
            "best_score": found.best.score,
            "max_rate": space.max_rate,
            "search_seconds": found.seconds(),
        }
    kept = strategy.kept(dependencies)
    ratio = float(cost.flops_ratio(kept))
    network = shrink(model, dependencies, l1_ranking(model, dependencies), kept)
    recalibrate(network, calibration)
    before = score_network(session, network, splits.test, size)
    progress.say(f"{ratio:.1%} of the FLOPs remain; test accuracy {before.accuracy:.2%}")
    history = fit_network(session, network, splits, size, schedule, work, "Fine-tuning")
    result = score_network(session, network, splits.test, size)
    architecture = describe(
        network,
        model=described.model,
        arguments=described.arguments,
        data=described.data,
        parent=described.id,
        metrics=result.to_dict(),
    )
    summary |= {
        "flops_ratio": ratio,
        "accuracy_before_finetuning": before.accuracy,
        **training_summary(history, schedule),
        **result.to_dict(),
        **checkpoint_costs(Checkpoint(network, architecture)),
    }
    files = {"strategy.json": json.dumps(strategy.to_dict(), indent=1) + "\n"}
    if storage.candidates:
        files["candidates.jsonl"] = storage.path.read_text()
    return stage.commit_checkpoint(network, architecture, history, summary, files)


def _baseline(options: PruneOptions, session: Session) -> StageRecord:
    """The run's baseline, trained first where there is none; what was asked for must agree."""
    run = session.run
    if "baseline" not in run.stages:
        if options.model is None:
            raise RunError(
                f"Run '{run.name}' has no baseline to prune; give --model, such as --model "
                "resnet50, to train one first."
            )
        given = {
            name: value
            for name in ("model", "data", "data_root", "image_size")
            if (value := getattr(options, name)) is not None
        }
        session.progress.say(
            f"Run '{run.name}' has no baseline yet: training {options.model} first"
        )
        return train(TrainOptions(**given), session)
    record = run.require("baseline", "prune")
    described = read_architecture(run.path("baseline"))
    for name, asked, has in (
        ("model", options.model, described.model),
        ("data", options.data, described.data.name),
        ("image-size", options.image_size, described.data.image_size),
    ):
        if asked is not None and asked != has:
            raise RunError(
                f"The baseline of run '{run.name}' has --{name} {has}, not {asked}; give another "
                "--run."
            )
    return record


def _search(
    session: Session,
    model: nn.Module,
    dependencies: Dependencies,
    space: SearchSpace,
    *,
    candidates: int,
    calibration: list[Tensor],
    scoring: list[tuple[Tensor, Tensor]],
    storage: CandidateFile,
) -> SearchResult:
    """Search, showing a bar, and say what was found and where the time went."""
    progress = session.progress
    if storage.candidates:
        progress.say(f"The search goes on after {len(storage.candidates)} candidates")
    best = max(storage.candidates, key=lambda c: c.rank, default=None)
    with progress.bar("Candidates") as bar:

        def show(candidate: Candidate) -> None:
            nonlocal best
            if best is None or candidate.rank > best.rank:
                best = candidate
            bar(candidate.index + 1, candidates, f"best {best.score:.2%}")

        found = search(
            model,
            dependencies,
            space,
            candidates=candidates,
            seed=session.run.seed,
            calibration=calibration,
            scoring=scoring,
            storage=storage,
            on_candidate=show,
        )
    ties = sum(candidate.score == found.best.score for candidate in found.candidates)
    progress.say(
        f"Best of {len(found.candidates)} candidates: {found.best.score:.2%} on held-out training "
        f"images{f' ({ties} equal, told apart by their loss)' if ties > 1 else ''}"
    )
    seconds = found.seconds()
    total = sum(seconds.values())
    parts = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items())
    progress.detail(f"A candidate took {total / len(found.candidates):.2f} s: {parts}")
    return found


def _calibration_batches(
    session: Session, splits: DataSplits, image_size: int, count: int, batch_size: int
) -> list[Tensor]:
    """Training images, shuffled by the seed, prepared once and kept on the device."""
    order = torch.randperm(
        len(splits.train), generator=torch.Generator().manual_seed(session.run.seed)
    )
    chosen = splits.train.select(order[: count * batch_size].tolist())
    batches = [images for images, _ in session.batches(chosen, image_size, batch_size)]
    # A single image left over cannot be normalised where the feature map is one position.
    return [batch for batch in batches if len(batch) > 1]
