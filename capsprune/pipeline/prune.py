"""The stage `prune`: search for a strategy, prune the baseline by it, fine-tune what is left."""

from __future__ import annotations

from typing import Any

import torch

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.capsules.head import head_of
from capsprune.checkpoint import Architecture, Checkpoint, describe, load_checkpoint
from capsprune.data.names import data_set
from capsprune.errors import RunError
from capsprune.files import dump_json
from capsprune.inspection import checkpoint_costs
from capsprune.options import PruneOptions, TrainOptions
from capsprune.pipeline.alignment import odd_counts
from capsprune.pipeline.baseline import require_baseline
from capsprune.pipeline.fitting import fit_network, score_network, score_summary
from capsprune.pipeline.latency import latency_limit
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.searching import (
    check_options,
    check_reach,
    check_storage,
    find_strategy,
    find_target,
    load_batches,
    search_space,
    write_measured_flops,
)
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage, content_of
from capsprune.pipeline.train import train
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.channels import layer_channels, prune_channels
from capsprune.pruning.criteria import rank_channels, takes_images
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.search import SearchResult
from capsprune.pruning.strategy import Strategy, read_strategy
from capsprune.pruning.target import Target
from capsprune.records import StageRecord


def prune(options: PruneOptions, session: Session) -> StageRecord:
    """Prune the baseline to a given size; train it first where the run has none.

    Raises:
        CapspruneError: if the target or the strategy cannot be met, or the stage is finished with
            other options.
    """
    options = check_options(options)
    run, progress = session.run, session.progress
    described = _baseline(options, session)
    shown = described.data.preprocessing
    size = shown.image_size
    stage = Stage.of(
        session,
        "pruned",
        options,
        described.id,
        model=described.model,
        data=described.data.name,
        image_size=size,
        split_seed=None,  # which is the baseline's
        strategy_sha256=content_of(options.strategy),
    )
    if record := stage.done():
        return record

    unpruned = Prunable.of(described.model, load_checkpoint(run.path("baseline")).network, size)
    model, dependencies = unpruned.model, unpruned.dependencies
    strategy, criterion = _given_strategy(options, described.model, dependencies)
    target, space, latency = Target.of(options), None, None
    if strategy is not None:
        strategy.kept(dependencies)  # raises if it does not fit
    else:
        latency = latency_limit(options, session, unpruned)
        target = find_target(options, session, unpruned, latency)
        space = search_space(options, target, unpruned)
    splits = session.data_of(
        run.path("baseline"),
        described,
        options.data_root,
        value_range=options.value_range,
        background=options.background,
    )
    device = session.fabric.device

    check_storage(options)
    work = stage.begin(splits)
    if space is not None:
        write_measured_flops(work, options, target)
    schedule = (
        data_set(described.data.name)
        .schedules["finetune"]
        .changed(options.epochs, options.batch_size, options.lr)
    )
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = load_batches(session, splits, shown, options.bn_batches, schedule.batch_size)
    rankings = rank_channels(
        model, dependencies, criterion, batches.labelled, run.seed, head_of(model).objective
    )
    summary: dict[str, Any] = {"model": described.model, "data": described.data.name}
    files: dict[str, str] = {}
    if strategy is None:
        assert space is not None
        found = find_strategy(
            options, session, stage, work, unpruned, space, rankings, batches, latency
        )
        strategy = _found_strategy(options, found, described.model, dependencies, criterion)
        summary |= {**_search_summary(options, found), "max_rate": space.max_rate}
        lines = [dump_json(candidate.to_dict()) for candidate in found.candidates]
        files["candidates.jsonl"] = "\n".join(lines) + "\n"
    kept = strategy.kept(dependencies)
    ratio = float(unpruned.cost.flops_ratio(kept))
    network = prune_channels(model, dependencies, rankings, kept)
    if options.strategy is None and (said := odd_counts(*map(layer_channels, (network, model)))):
        progress.say(said)
    recalibrate(network, batches.calibration)
    before = score_network(session, network, splits.test, shown)
    progress.say(f"{ratio:.1%} of the FLOPs remain; test accuracy {before.accuracy:.2%}")
    history, training = fit_network(session, network, splits, shown, schedule, work, "Fine-tuning")
    result = score_network(session, network, splits.test, shown)
    architecture = describe(
        network, described.blueprint, parent=described.id, metrics=result.to_dict()
    )
    summary |= {
        "criterion": criterion,
        "flops_ratio": ratio,
        "accuracy_before_finetuning": before.accuracy,
        **training,
        **score_summary(result, splits.class_names),
        **checkpoint_costs(Checkpoint(network, architecture)),
    }
    files["strategy.json"] = dump_json(strategy.to_dict(), indent=1) + "\n"
    return stage.commit_checkpoint(network, architecture, history, summary, files)


def _found_strategy(
    options: PruneOptions,
    found: SearchResult,
    model: str,
    dependencies: Dependencies,
    criterion: str,
) -> Strategy:
    """Write the best candidate down as a strategy."""
    best = found.best
    return Strategy(
        model,
        best.flops_ratio if options.flops is None else options.flops,
        dict(zip(dependencies.names, best.fractions, strict=True)),
        options.round_to,
        criterion,
    )


def _search_summary(options: PruneOptions, found: SearchResult) -> dict[str, Any]:
    """Return what the stage's summary says of the search."""
    best = found.best
    summary = {
        "candidates": found.plan[0].candidates,
        "rungs": [rung.candidates for rung in found.plan],
        "sampler": options.sampler,
        "best_candidate": best.index,
        "best_score": best.score,
        "candidates_with_best_score": found.ties,
        "search_seconds": found.seconds(),
    }
    return summary if best.latency_ms is None else {**summary, "latency_ms": best.latency_ms}


def _baseline(options: PruneOptions, session: Session) -> Architecture:
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
            for name in (
                *("model", "data", "data_root", "image_size"),
                *("value_range", "background", "split_seed"),
            )
            if (value := getattr(options, name)) is not None
        }
        session.progress.say(
            f"Run '{run.name}' has no baseline yet: training {options.model} first"
        )
        training = TrainOptions(**given)
        _check_before_training(options, training, session)
        train(training, session)
    return require_baseline(
        session,
        "prune",
        split_seed=options.split_seed,
        model=options.model,
        data=options.data,
        image_size=options.image_size,
    )


def _check_before_training(options: PruneOptions, training: TrainOptions, session: Session) -> None:
    """Refuse now what would be refused after the baseline is trained.

    All of it follows from the network's shapes, which training does not change.
    """
    name, size = training.model, training.image_size or data_set(training.data).image_size
    arguments = backbone_arguments(name, size)
    if options.strategy is not None:
        read_strategy(options.strategy, name)
    check_storage(options)
    new = session.new_split("baseline", training, None)
    classes = session.new_data(training, size, new).num_classes
    network = Prunable.of(name, build_backbone(name, classes, **arguments).eval(), size)
    strategy, criterion = _given_strategy(options, name, network.dependencies)
    if strategy is not None:
        strategy.kept(network.dependencies)
    else:
        check_reach(options, session, network)
    if not takes_images(criterion):  # as yet there are none
        rank_channels(network.model, network.dependencies, criterion)


def _given_strategy(
    options: PruneOptions, name: str, dependencies: Dependencies
) -> tuple[Strategy | None, str]:
    """Give the strategy that needs no search, if there is one, and how channels are ranked."""
    if Target.of(options).removes_nothing:
        return Strategy.keeping_all(name, dependencies), options.criterion or "l1"
    if options.strategy is None:
        return None, options.criterion or "l1"
    strategy = read_strategy(options.strategy, name)
    return strategy, options.criterion or strategy.criterion
