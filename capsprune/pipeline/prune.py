"""The stage `prune`: search for a strategy, prune the baseline by it, fine-tune what is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.capsules.head import head_of
from capsprune.checkpoint import Architecture, load_checkpoint
from capsprune.data.names import data_set
from capsprune.errors import RunError
from capsprune.options import PruneOptions, TrainOptions
from capsprune.pipeline.baseline import require_baseline
from capsprune.pipeline.latency import check_smallest, latency_limit
from capsprune.pipeline.prunable import Prunable, UntrainedHead, capsules_of_trunk
from capsprune.pipeline.searching import (
    Pruning,
    check_options,
    check_storage,
    find_strategy,
    find_target,
    load_batches,
    write_measured_flops,
)
from capsprune.pipeline.session import Session
from capsprune.pipeline.shrinking import Found, shrink
from capsprune.pipeline.stage import Stage, content_of
from capsprune.pipeline.train import train
from capsprune.pruning.criteria import rank_channels, takes_images
from capsprune.pruning.groups import Dependencies
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
    run = session.run
    described = _baseline(options, session)
    shown = described.data.preprocessing
    stage = Stage.of(
        session,
        "pruned",
        options,
        described.id,
        model=described.model,
        data=described.data.name,
        image_size=shown.image_size,
        split_seed=None,  # which is the baseline's
        strategy_sha256=content_of(options.strategy),
    )
    if record := stage.done():
        return record

    baseline = load_checkpoint(run.path("baseline")).network
    unpruned = _prunable(options, described.model, baseline, shown.image_size)
    model, dependencies = unpruned.model, unpruned.dependencies
    strategy, criterion = _given_strategy(options, described.model, dependencies)
    target, space, latency = Target.of(options), None, None
    if strategy is not None:
        strategy.kept(dependencies)  # raises if it does not fit
    else:
        latency = latency_limit(options, session, unpruned)
        target = find_target(options, stage, unpruned, latency)
        space = unpruned.search_space(target, options.max_rate, options.round_to)
    splits = session.data_of(
        run.path("baseline"),
        described,
        options.data_root,
        value_range=options.value_range,
        background=options.background,
    )

    check_storage(options)
    work = stage.begin(splits)
    if space is not None:
        write_measured_flops(work, target, unpruned.measured_with)
    schedule = (
        data_set(described.data.name)
        .schedules["finetune"]
        .changed(options.epochs, options.batch_size, options.lr)
    )
    model.to(session.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = load_batches(session, splits, shown, options.bn_batches, schedule.batch_size)
    rankings = rank_channels(
        model, dependencies, criterion, data.labelled, run.seed, head_of(model).objective
    )
    pruning = Pruning(options, stage, work, unpruned, rankings, criterion, data, latency)
    summary: dict[str, Any] = {}
    if strategy is not None:
        found = Found.given(strategy)
    else:
        assert space is not None
        found = Found.by_search(pruning, find_strategy(pruning, space))
        summary["max_rate"] = space.max_rate
    return shrink(pruning, found, described, splits, schedule, summary)


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
    unpruned = build_backbone(name, classes, **arguments).eval()
    network = _prunable(options, name, unpruned, size)
    strategy, criterion = _given_strategy(options, name, network.dependencies)
    if strategy is not None:
        strategy.kept(network.dependencies)
    else:
        _check_reach(options, session, network)
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


def _prunable(options: PruneOptions, name: str, model: nn.Module, size: int) -> Prunable:
    """Return a backbone with its groups, and what is counted and measured of it.

    Raises:
        StrategyError: if primary capsules are counted that its trunk is too narrow for.
    """
    head = UntrainedHead(options.head, options.d1)
    network = Prunable.of(name, model, size, measured_with=head)
    if options.primary_caps is None:
        return network
    return replace(network, counted={"primary_caps": capsules_of_trunk(network, options.d1)})


def _check_reach(options: PruneOptions, session: Session, network: Prunable) -> None:
    """Check that some strategy has the size asked for, as far as an untrained network tells.

    Raises:
        StrategyError: if the target is out of reach.
    """
    target = Target.of(options)
    if target.is_computed:
        network.search_space(target, options.max_rate, options.round_to)
    if (latency := latency_limit(options, session, network)) is not None:
        check_smallest(latency, options, session, network)
