"""The stage `prune-caps`: prune the whole capsule network, head and trunk, and fine-tune it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from capsprune.capsules.dynamic_head import DynamicConfig
from capsprune.capsules.head import head_of
from capsprune.capsules.heads import DYNAMIC
from capsprune.capsules.network import CapsuleNetwork
from capsprune.capsules.primary.names import DENSE, FACTORED
from capsprune.checkpoint import Architecture, load_checkpoint, read_architecture
from capsprune.data.names import data_set
from capsprune.errors import RunError, StrategyError
from capsprune.option_types import DEFAULT_TOLERANCE
from capsprune.options import PruneCapsOptions
from capsprune.pipeline.fitting import load_classes, score_network
from capsprune.pipeline.latency import latency_limit
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.searching import (
    Pruning,
    check_options,
    check_storage,
    find_smallest_strategy,
    find_strategy,
    find_target,
    load_batches,
    write_measured_flops,
)
from capsprune.pipeline.session import Session
from capsprune.pipeline.shrinking import Found, shrink
from capsprune.pipeline.stage import Stage, content_of
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.cost import count_macs, count_parameters
from capsprune.pruning.criteria import rank_channels
from capsprune.pruning.factoring import factor
from capsprune.pruning.file_size import FileSize
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.names import DEFAULT_CAPSULE_CRITERION
from capsprune.pruning.space import Reference, SearchSpace
from capsprune.pruning.strategy import Strategy, read_strategy
from capsprune.pruning.target import Target
from capsprune.records import StageRecord

#: The group of the channels between the two layers of a factored PrimaryCaps.
_RANK = "primary_caps.basis"


def prune_caps(options: PruneCapsOptions, session: Session) -> StageRecord:
    """Prune a capsule network to given sizes, or to the smallest one that is as good.

    Raises:
        CapspruneError: if there is no capsule network, the target or the strategy cannot be met,
            or the stage is finished with other options.
    """
    options = check_options(options, Target(tolerance=DEFAULT_TOLERANCE))
    source, described = _find_capsules(options, session)
    head = _head_of(described)
    strategy = None
    if options.strategy is not None:
        strategy = read_strategy(options.strategy, described.model, head)
    criterion = options.criterion or (strategy.criterion if strategy else "l1")
    capsule_criterion = (
        options.capsule_criterion
        or (strategy and strategy.capsule_criterion)
        or DEFAULT_CAPSULE_CRITERION
    )
    stage = Stage.of(
        session,
        "slim",
        options,
        described.id,
        criterion=criterion,
        capsule_criterion=capsule_criterion,
        strategy_sha256=content_of(options.strategy),
    )
    if record := stage.done():
        return record

    given = load_checkpoint(source).network
    assert isinstance(given, CapsuleNetwork)
    factored = _is_factored_for(options, strategy, given, source)
    splits = load_classes(session, source, described, options.data_root)
    shown = described.data.preprocessing
    schedules = data_set(splits.name).schedules
    schedule = schedules["caps-frozen" if options.freeze else "caps-finetuned"].changed(
        options.epochs, options.batch_size, options.lr
    )
    given.to(session.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = load_batches(session, splits, shown, options.bn_batches, schedule.batch_size)
    model = factor(given, data.calibration) if factored else given
    dependencies = find_capsule_groups(model, shown.image_size)
    if strategy is not None:
        _check_strategy(strategy, options, dependencies, source)
    rankings = rank_channels(
        model,
        dependencies,
        criterion,
        data.labelled,
        session.run.seed,
        head_of(model).objective,
        capsule_criterion,
    )
    unpruned = Prunable.of_capsules(
        described.model,
        model,
        shown.image_size,
        dependencies,
        rankings,
        Reference(sum(count_macs(given, shown.image_size).values()), count_parameters(given)),
    )
    if options.file_size is not None:
        unpruned = _with_file_size(unpruned, session, described)
    target, space, latency = Target.of(options), None, None
    if strategy is None and target.removes_nothing:
        strategy = Strategy.keeping_all(described.model, dependencies, head)
    if strategy is None:
        latency = latency_limit(options, session, unpruned)
        target = find_target(options, stage, unpruned, latency)
        space = _search_space(options, target, unpruned)

    check_storage(options)
    work = stage.begin(splits)
    write_measured_flops(work, target, None)
    pruning = Pruning(
        options,
        stage,
        work,
        unpruned,
        rankings,
        criterion,
        data,
        latency,
        head,
        capsule_criterion,
    )
    found = _find(pruning, strategy, target, space)
    kept = found.strategy.kept(dependencies)
    sizes = _sizes(given, unpruned, kept)
    session.progress.say(f"What remains: {_words(sizes)}")
    before = score_network(session, given, splits.test, shown)
    summary = {
        "frozen": options.freeze,
        **sizes,
        "params_ratio": unpruned.params_ratio(kept),
        "accuracy_of_caps": before.accuracy,
        "capsule_criterion": capsule_criterion,
    }
    if target.tolerance is not None:
        summary["tolerance"] = target.tolerance
    return shrink(pruning, found, described, splits, schedule, summary, freeze=options.freeze)


def _find_capsules(options: PruneCapsOptions, session: Session) -> tuple[Path, Architecture]:
    """Find the capsule network: what was named, or the run's.

    Returns:
        Its checkpoint, and the description of it.

    Raises:
        CapspruneError: if there is none, or it has no capsules.
    """
    source = options.checkpoint
    if source is None:
        session.run.require("caps", "prune-caps")
        source = session.run.path("caps")
    described = read_architecture(source)
    if described.head is None or described.head.kind != DYNAMIC:
        kind = "its own classifier" if described.head is None else f"a {described.head.kind} head"
        raise RunError(
            f"{source} has {kind}, and prune-caps prunes networks with a {DYNAMIC} one; give a "
            "checkpoint that attach-caps left."
        )
    return source, described


def _head_of(described: Architecture) -> str:
    """Return what strategies name the head of a capsule network: its kind and its PrimaryCaps's."""
    config = described.head
    assert isinstance(config, DynamicConfig)
    return f"{config.kind}, {config.primary}"


def _is_factored_for(
    options: PruneCapsOptions, strategy: Strategy | None, given: CapsuleNetwork, source: Path
) -> bool:
    """Tell whether PrimaryCaps is to be factored before the network is pruned.

    Raises:
        StrategyError: if that is asked for, and cannot be.
    """
    kind = given.primary_caps.kind
    if options.primary_rank is not None and kind not in (DENSE, FACTORED):
        raise StrategyError(
            f"{source} has a PrimaryCaps of kind {kind}, and it is a dense one that can be "
            "factored; leave out --primary-rank."
        )
    if strategy is not None:
        return kind == DENSE and _RANK in strategy.fractions
    return kind == DENSE and (options.primary_rank is not None or Target.of(options).is_smallest)


def _check_strategy(
    strategy: Strategy, options: PruneCapsOptions, dependencies: Dependencies, source: Path
) -> None:
    """Check that a strategy names the groups of a capsule network.

    Raises:
        StrategyError: if it is of another one.
    """
    odd = sorted(set(strategy.fractions) ^ set(dependencies.names))
    if odd:
        which = "has no group" if odd[0] in strategy.fractions else "has a group"
        raise StrategyError(
            f"{options.strategy} is no strategy for {source}, which {which} '{odd[0]}'; give one "
            "that prune-caps left for such a network."
        )


def _with_file_size(network: Prunable, session: Session, described: Architecture) -> Prunable:
    """Find how the bytes of the exported file follow from what is kept.

    Raises:
        ExportError: if the network cannot be exported.
    """
    from capsprune.pipeline.export import file_content_of  # which takes onnx to import

    content = file_content_of(session, network.model, described)
    return replace(network, file_size=FileSize.build(content, network.model, network.cost))


def _search_space(options: PruneCapsOptions, target: Target, network: Prunable) -> SearchSpace:
    """Return the space of the strategies to look at.

    Raises:
        StrategyError: if the target is out of reach.
    """
    if target.is_smallest:
        return network.whole_space(options.max_rate, options.round_to)
    return network.search_space(target, options.max_rate, options.round_to)


def _find(
    pruning: Pruning, strategy: Strategy | None, target: Target, space: SearchSpace | None
) -> Found:
    """Find the strategy, if it is not given; where there are few, all are tried."""
    if strategy is not None:
        return Found.given(strategy)
    assert space is not None
    if target.tolerance is not None:
        result = find_smallest_strategy(pruning, space, target.tolerance)
    else:
        listed = space.enumerate(pruning.options.candidates)
        result = find_strategy(pruning, space, listed)
    return Found.by_search(pruning, result)


def _sizes(given: CapsuleNetwork, network: Prunable, kept: NDArray[np.int64]) -> dict[str, int]:
    """Return the sizes of the head before it was pruned and after, as the summary has them.

    Args:
        given: the network before it was factored.
        network: what is pruned.
        kept: units kept in each group, [G].
    """
    groups = network.dependencies.groups
    removed = dict.fromkeys(network.kinds, 0)
    for group, count in zip(groups, kept, strict=True):
        removed[group.kind] += group.channels - int(count)
    capsules, iterations = given.primary_caps.capsules, given.output_caps.iterations
    sizes = {
        "capsules": capsules - removed.get("capsules", 0),
        "capsules_of": capsules,
        "iterations": iterations - removed.get("iterations", 0),
        "iterations_of": iterations,
    }
    if "rank" in network.kinds:
        rank = groups[network.kinds.index("rank")].channels
        sizes |= {"primary_rank": rank - removed["rank"], "primary_rank_of": rank}
    return sizes


def _words(sizes: dict[str, int]) -> str:
    """Say what sizes remain."""
    names = {
        "capsules": "primary capsules",
        "primary_rank": "directions of PrimaryCaps",
        "iterations": "routing iterations",
    }
    return ", ".join(
        f"{sizes[key]} of {sizes[f'{key}_of']} {name}"
        for key, name in names.items()
        if key in sizes
    )
