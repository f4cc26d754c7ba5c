"""The stage `analyse`: what the capsules do, and how the network bears distorted images."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from capsprune.analysis.entropy import BottleneckEntropy
from capsprune.analysis.robustness import DISTORTIONS, Scores, accuracies
from capsprune.capsules.head import Trace, head_of
from capsprune.checkpoint import Checkpoint, load_checkpoint
from capsprune.data.images import ImageSet
from capsprune.errors import RunError
from capsprune.files import dump_json
from capsprune.options import AnalyseOptions
from capsprune.pipeline.fitting import load_classes
from capsprune.pipeline.session import EVALUATION_BATCH, Session
from capsprune.pipeline.stage import Stage
from capsprune.records import StageRecord
from capsprune.run import Run
from capsprune.stages import STAGES
from capsprune.summaries import HeadSummary


def analyse(options: AnalyseOptions, session: Session) -> StageRecord:
    """Look into the run's capsule network, and distort the test images it sees.

    It is the one whose capsules were pruned, where there is one. Where the run has a linear
    baseline on the trunk that capsules were attached to, trained in the same way, it is shown the
    same distorted images.

    Raises:
        CapspruneError: if there is no capsule network, or the stage is finished with other options.
    """
    run = session.run
    shown_stage = run.source_of("analysis")
    capsules = run.require(shown_stage, "analyse")
    attached = _attached(run, capsules)
    linear = _baseline(session, attached)
    stage = Stage.of(
        session, "analysis", options, capsules.id, linear=None if linear is None else linear.id
    )
    if record := stage.done():
        return record

    source = run.path(shown_stage)
    checkpoint = load_checkpoint(source)
    network = checkpoint.network.to(session.fabric.device)
    trace = head_of(network).trace(network)
    if trace is None:
        raise RunError(
            f"{source} has a head that 'analyse' cannot look into; attach another, such as "
            "'capsprune attach-caps --head dynamic --overwrite'."
        )
    data = checkpoint.architecture.data
    splits = load_classes(session, source, checkpoint.architecture, options.data_root)
    images = spread_images(splits.test, options.images)
    work = stage.begin(splits)
    networks: dict[str, nn.Module] = {"capsules": network}
    if linear is not None:
        networks["linear"] = load_checkpoint(run.path("linear")).network
    for shown in networks.values():
        shown.to(session.fabric.device).eval()
    steps = -(-len(images) // EVALUATION_BATCH) * (1 + len(DISTORTIONS))
    done = 0
    with session.progress.bar("Analysing") as bar, session.fabric.autocast():

        def step() -> None:
            nonlocal done
            done += 1
            bar(done, steps)

        inside = _look_inside(session, checkpoint, trace, images, step)
        right = accuracies(
            {name: _scores(shown) for name, shown in networks.items()},
            session.batches(images, data.preprocessing),
            step=step,
        )
    summary = {
        "images": len(images),
        "model": checkpoint.architecture.model,
        "data": data.name,
        "network": STAGES[shown_stage].network,
        "frozen": None if attached is None else attached.summary_as(HeadSummary).frozen,
        **inside,
        "robustness": [
            {
                "distortion": distortion.name,
                "amount": distortion.amount,
                "unit": distortion.unit,
                "capsules": accuracy["capsules"],
                "linear": accuracy.get("linear"),
            }
            for distortion, accuracy in right.items()
        ],
    }
    result = work / "analysis.json"
    result.write_text(dump_json(summary, indent=1) + "\n", encoding="utf-8")
    return stage.commit(result, uuid.uuid4().hex, summary)


def spread_images(images: ImageSet, count: int) -> ImageSet:
    """Choose images evenly from all classes, always the same.

    They come class by class, so that what hangs on the position of an image is no matter of its
    class.

    Args:
        images: to choose from.
        count: how many to take, at most.
    """
    by_class = torch.argsort(images.labels, stable=True)
    count = min(count, len(images))
    chosen = by_class[torch.arange(count) * len(images) // count]
    return images.select(chosen.tolist())


def _attached(run: Run, capsules: StageRecord) -> StageRecord | None:
    """Return the record that says how capsules were trained, before any were pruned, if known."""
    attached = run.stages.get("caps")
    known = attached is not None and attached.id in (capsules.id, capsules.parent)
    return attached if known else None


def _baseline(session: Session, attached: StageRecord | None) -> StageRecord | None:
    """Return the run's linear baseline, if capsules can be compared with it.

    Args:
        session: of the command.
        attached: the record of the capsules as they were attached to a trunk.
    """
    run = session.run
    if "linear" not in run.stages:
        return None
    try:
        linear = run.require("linear", "analyse")
    except RunError as error:
        session.progress.say(f"The linear baseline is left out: {error}")
        return None
    if attached is None or linear.parent != attached.parent:
        reason = "it was made from another backbone than the capsule network"
    elif linear.summary_as(HeadSummary).frozen != attached.summary_as(HeadSummary).frozen:
        reason = "of one of the two networks the trunk is frozen, of the other it is finetuned"
    else:
        return linear
    session.progress.say(f"The linear baseline is left out: {reason}")
    return None


def _scores(network: nn.Module) -> Scores:
    objective = head_of(network).objective
    return lambda images: objective.scores(network(images))


@torch.no_grad()
def _look_inside(
    session: Session,
    checkpoint: Checkpoint,
    trace: Trace,
    images: ImageSet,
    step: Callable[[], None],
) -> dict[str, Any]:
    """Return what the summary says of bottleneck and head."""
    trunk, data = checkpoint.trunk, checkpoint.architecture.data
    entropy = BottleneckEntropy(len(data.class_names))
    for batch, labels in session.batches(images, data.preprocessing):
        features: Tensor = trunk(batch)
        entropy.update(features, labels)
        trace.update(features, labels)
        step()
    return {
        "bottleneck_entropy": entropy.bits,
        "active_share": entropy.active_share,
        **trace.summary(),
    }
