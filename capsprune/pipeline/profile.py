"""The stage `profile`: the exported network beside the unpruned one, with and without capsules."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import torch
from torch import nn

from capsprune.capsules.head import HeadConfig
from capsprune.capsules.heads import HEADS, LINEAR
from capsprune.checkpoint import Checkpoint, build_headed, describe, load_checkpoint
from capsprune.files import dump_json
from capsprune.inspection import checkpoint_costs
from capsprune.options import ProfileOptions
from capsprune.pipeline.alignment import odd_counts
from capsprune.pipeline.export import export_checkpoint, find_images
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.progress import Progress
from capsprune.records import StageName, StageRecord
from capsprune.run import Run
from capsprune.runtime.profile import Measurement, Place, Timing, profile_variants
from capsprune.runtime.sessions import resolve_provider
from capsprune.stages import STAGES
from capsprune.training.device import gpu_number

#: Names of the first variants. Those of the run's capsule networks, which follow, are the table's.
UNPRUNED_LINEAR = "unpruned, linear"
UNPRUNED_CAPSULES = "unpruned, capsules"


def profile(options: ProfileOptions, session: Session) -> StageRecord:
    """Measure networks side by side in ONNX Runtime.

    They are the unpruned backbone with its linear classifier, the unpruned backbone with an
    untrained capsule head, the run's pruned capsule network and, where its capsules were pruned
    too, what that left. Where the pruned backbone was imported and the run has no baseline, the
    unpruned one is untrained, which costs the same. A classifier of several layers, as VGG has,
    gives way to one untrained linear layer, so that the costs of heads are compared and not those
    of that classifier.

    Raises:
        CapspruneError: if nothing was exported yet, or the provider is not there.
    """
    run = session.run
    exported = run.require("onnx", "profile")
    gpu = gpu_number(session.device)
    tried = resolve_provider(options.provider, gpu)
    stage = Stage.of(session, "profile", options, exported.id)
    if record := stage.done():
        return record

    capsules = {name: load_checkpoint(run.path(name)) for name in _capsule_stages(run)}
    first, last = next(iter(capsules.values())), capsules[run.source_of("onnx")]
    unpruned = _unpruned(session, first)
    variants = {
        UNPRUNED_LINEAR: with_one_linear_layer(unpruned, session.progress.say),
        UNPRUNED_CAPSULES: _with_untrained_head(unpruned, first),
        **{STAGES[name].network: checkpoint for name, checkpoint in capsules.items()},
    }
    data = unpruned.architecture.data
    images = find_images(session, run.path(run.source_of("onnx")), last.architecture)
    work = stage.begin()
    session.progress.say("Exporting the networks to compare with")
    files = {}
    for place, (name, checkpoint) in enumerate(variants.items()):
        if checkpoint is last:
            files[name] = run.path("onnx") / "model.onnx"
            continue
        files[name] = work / f"{place}.onnx"
        files[name].unlink(missing_ok=True)
        export_checkpoint(session, checkpoint, images, files[name])
    with session.progress.bar("Profiling") as bar:
        measurements = profile_variants(
            files,
            image_size=data.image_size,
            place=Place(options.provider, gpu),
            timing=Timing(options.batch, options.repeats, seed=run.seed),
            folder=work,
            progress=lambda what, done, total: bar(done, total, what),
        )
    say_where(tried, measurements, session.progress)
    if said := odd_counts(last.architecture.channels, unpruned.architecture.channels):
        session.progress.say(said)
    summary = {
        "variants": {
            name: {
                **checkpoint_costs(checkpoint),
                "file_bytes": files[name].stat().st_size,
                "accuracy": checkpoint.architecture.metrics.get("accuracy"),
            }
            for name, checkpoint in variants.items()
        },
        "measurements": [measurement.to_dict() for measurement in measurements],
    }
    result = work / "profile.json"
    result.write_text(dump_json(summary, indent=1) + "\n", encoding="utf-8")
    return stage.commit(result, uuid.uuid4().hex, summary)


def _capsule_stages(run: Run) -> list[StageName]:
    """Return the stages whose capsule networks are measured; the last one's is what is exported."""
    exported = run.source_of("onnx")
    earlier = (name for name in STAGES["onnx"].follows if name in run.stages and name != exported)
    return [*reversed([*earlier]), exported]


def say_where(tried: str, measurements: Sequence[Measurement], progress: Progress) -> None:
    """Say where it was measured, if that is not where it should have been."""
    if tried == "cuda" and any(row.provider == "cpu" for row in measurements):
        progress.say(
            "ONNX Runtime could not load its CUDA provider, whose CUDA and cuDNN libraries are not "
            "installed or are too old: all of it was measured on the CPU"
        )


def _unpruned(session: Session, pruned: Checkpoint) -> Checkpoint:
    """Return the run's baseline, or an untrained one where the run has none."""
    run = session.run
    if "baseline" in run.stages:
        run.require("baseline", "profile")
        return load_checkpoint(run.path("baseline"))
    described = pruned.architecture
    session.progress.say(
        f"The run has no baseline: an untrained {described.model} stands for the unpruned one"
    )
    torch.manual_seed(run.seed)
    network = described.blueprint.build().eval()
    return Checkpoint(network, describe(network, described.blueprint, parent=None, metrics={}))


def with_one_linear_layer(unpruned: Checkpoint, say: Callable[[str], None]) -> Checkpoint:
    """Return the unpruned backbone, or its trunk with one layer where its classifier has several.

    Args:
        unpruned: a backbone.
        say: told of another layer.
    """
    network, described = unpruned.network, unpruned.architecture
    in_trunk = set(unpruned.trunk.modules())
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in in_trunk
    ]
    if len(layers) == 1:
        return unpruned
    say(
        f"The classifier of {described.model} has {len(layers)} layers with weights: one untrained "
        "linear layer is measured in its place"
    )
    return _with_head(unpruned, HEADS[LINEAR].config(kind=LINEAR))


def _with_untrained_head(unpruned: Checkpoint, like: Checkpoint) -> Checkpoint:
    """Put a head as another network has it on the unpruned trunk."""
    head = like.architecture.head
    assert head is not None
    return _with_head(unpruned, head)


def _with_head(unpruned: Checkpoint, head: HeadConfig) -> Checkpoint:
    """Put an untrained head on the unpruned trunk."""
    described = unpruned.architecture
    network = build_headed(unpruned.trunk, head, described.data).eval()
    made = describe(network, described.blueprint, parent=described.id, metrics={})
    return Checkpoint(network, made)
