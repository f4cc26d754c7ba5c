"""The stages `attach-caps` and `attach-linear`: a head on the pruned trunk, trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from capsprune.backbones.trunk import trunk_output
from capsprune.capsules.heads import HEADS, LINEAR
from capsprune.checkpoint import (
    Architecture,
    Checkpoint,
    describe,
    load_checkpoint,
    read_architecture,
)
from capsprune.data.names import data_set
from capsprune.errors import RunError
from capsprune.inspection import checkpoint_costs
from capsprune.option_types import DEFAULT_D1
from capsprune.options import AttachCapsOptions, AttachLinearOptions, HeadOptions
from capsprune.pipeline.fitting import fit_network, load_classes, score_network, score_summary
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.records import StageRecord


def attach_caps(options: AttachCapsOptions, session: Session) -> StageRecord:
    """Put a capsule head on the pruned trunk and train it.

    Raises:
        CapspruneError: if there is no pruned backbone, the head does not fit its trunk or has no
            such option as was given, or the stage is finished with other options.
    """
    source, described = _find_trunk(options, session, "attach-caps")
    head = HEADS[options.head]
    given = {"iterations": options.iterations, "d1": options.d1, "d2": options.d2}
    if options.d1 is None and "d1" in head.config.model_fields:
        given["d1"] = _counted_d1(options, session)
    resolved = head.resolve(options.head, given)
    stage = Stage.of(session, "caps", options, described.id, **resolved)
    primary = {key: getattr(options, key) for key in ("primary", "types", "primary_rank")}
    sizes = resolved | head.resolve(options.head, primary)
    return stage.done() or _train_head(options, stage, options.head, sizes, source, described)


def attach_linear(options: AttachLinearOptions, session: Session) -> StageRecord:
    """Train the linear baseline: one linear layer on the pooled pruned trunk.

    It takes the place of the backbone's own classifier, which has several large layers in some
    backbones, so that all heads are compared with the same one.

    Raises:
        CapspruneError: if there is no pruned backbone, or the stage is finished with other options.
    """
    source, described = _find_trunk(options, session, "attach-linear")
    stage = Stage.of(session, "linear", options, described.id)
    return stage.done() or _train_head(options, stage, LINEAR, {}, source, described)


def _find_trunk(options: HeadOptions, session: Session, command: str) -> tuple[Path, Architecture]:
    """Find the backbone whose trunk gets a head: what was named, or the run's pruned one.

    Returns:
        Its checkpoint, and the description of it.

    Raises:
        CapspruneError: if there is none, or it has a capsule head already.
    """
    source = options.checkpoint
    if source is None:
        session.run.require("pruned", command)
        source = session.run.path("pruned")
    described = read_architecture(source)
    if described.head is not None and described.head.kind != LINEAR:
        raise RunError(f"{source} has a capsule head already; give a checkpoint of a backbone.")
    return source, described


def _counted_d1(options: AttachCapsOptions, session: Session) -> int | None:
    """Return the values of a primary capsule with which `prune` counted them, if it did."""
    pruned = session.run.stages.get("pruned") if options.checkpoint is None else None
    d1 = DEFAULT_D1 if pruned is None else int(pruned.options.get("d1", DEFAULT_D1))
    if d1 == DEFAULT_D1:
        return None
    session.progress.say(f"Primary capsules have {d1} values, as --d1 of prune said")
    return d1


def _train_head(
    options: HeadOptions,
    stage: Stage,
    kind: str,
    sizes: Mapping[str, Any],
    source: Path,
    described: Architecture,
) -> StageRecord:
    """Put a head on the trunk of a backbone, train and score it, and commit it.

    All kinds of head get the same schedule, so that they can be compared.

    Args:
        options: of the stage.
        stage: that is worked on.
        kind: name of the head.
        sizes: options of the head.
        source: checkpoint of the backbone.
        described: its description.
    """
    session, head = stage.session, HEADS[kind]
    trunk = load_checkpoint(source).trunk
    features = trunk_output(trunk, described.data.image_size)
    config = head.configure(kind, features, sizes)
    torch.manual_seed(session.run.seed)
    network = head.build(trunk, features, len(described.data.class_names), config)
    if options.freeze:
        network.freeze_trunk()
    splits = load_classes(session, source, described, options.data_root)
    session.progress.say(
        f"{head.words(network, features)}; the trunk is "
        f"{'frozen' if options.freeze else 'finetuned'}"
    )

    shown = described.data.preprocessing
    work = stage.begin(splits)
    schedules = data_set(splits.name).schedules
    schedule = schedules["caps-frozen" if options.freeze else "caps-finetuned"].changed(
        options.epochs, options.batch_size, options.lr
    )
    title = f"Training the {kind} head"
    history, training = fit_network(session, network, splits, shown, schedule, work, title)
    score = score_network(session, network, splits.test, shown)
    architecture = describe(
        network, described.blueprint, parent=described.id, metrics=score.to_dict()
    )
    return stage.commit_checkpoint(
        network,
        architecture,
        history,
        {
            "model": described.model,
            "data": described.data.name,
            "frozen": options.freeze,
            **training,
            **score_summary(score, splits.class_names),
            **checkpoint_costs(Checkpoint(network, architecture), frozen=options.freeze),
        },
    )
