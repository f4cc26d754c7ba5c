"""The stage `attach-caps`: a capsule head on the pruned trunk, trained."""

from __future__ import annotations

import torch

from capsprune.backbones.trunk import trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.checkpoint import Checkpoint, describe_like, load_checkpoint, read_architecture
from capsprune.errors import RunError
from capsprune.inspection import checkpoint_costs
from capsprune.pipeline.fitting import fit_network, score_network, training_summary
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.recipe import AttachCapsOptions
from capsprune.run import StageRecord
from capsprune.training.schedule import default_schedule


def attach_caps(options: AttachCapsOptions, session: Session) -> StageRecord:
    """Put a capsule head on the pruned trunk and train it.

    Raises:
        CapspruneError: if there is no pruned backbone, its trunk is too narrow, or the stage is
            finished with other options.
    """
    run, progress = session.run, session.progress
    source = options.checkpoint
    if source is None:
        run.require("pruned", "attach-caps")
        source = run.path("pruned")
    described = read_architecture(source)
    if described.head is not None:
        raise RunError(f"{source} has a capsule head already; give a checkpoint of a backbone.")
    stage = Stage.of(session, "caps", options, described.id)
    if record := stage.done():
        return record

    size = described.data.image_size
    trunk = load_checkpoint(source).trunk
    channels, feature_size = trunk_output(trunk, size)
    torch.manual_seed(run.seed)
    network = CapsuleNetwork(
        trunk,
        channels=channels,
        feature_size=feature_size,
        classes=len(described.data.class_names),
        d1=options.d1,
        d2=options.d2,
        iterations=options.iterations,
    )
    if options.freeze:
        network.freeze_trunk()
    splits = session.data(described.data.name, options.data_root, size)
    if splits.class_names != described.data.class_names:
        raise RunError(
            f"{source} was made for other classes than data set '{splits.name}' has now; make it "
            "anew."
        )
    progress.say(
        f"{channels} channels make {network.primary_caps.capsules} primary capsules, routed to "
        f"{splits.num_classes} output capsules; the trunk is "
        f"{'frozen' if options.freeze else 'finetuned'}"
    )

    work = stage.begin(splits)
    schedule = default_schedule(
        "caps-frozen" if options.freeze else "caps-finetuned", splits.name
    ).changed(options.epochs, options.batch_size, options.lr)
    history = fit_network(session, network, splits, size, schedule, work, "Training capsules")
    result = score_network(session, network, splits.test, size)
    architecture = describe_like(network, described, parent=described.id, metrics=result.to_dict())
    return stage.commit_checkpoint(
        network,
        architecture,
        history,
        {
            "model": described.model,
            "data": described.data.name,
            "frozen": options.freeze,
            "routing_iterations": options.iterations,
            **training_summary(history, schedule),
            **result.to_dict(),
            **checkpoint_costs(Checkpoint(network, architecture), frozen=options.freeze),
        },
    )
