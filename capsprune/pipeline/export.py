"""The stage `export`: one ONNX file that verified itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from capsprune.checkpoint import Architecture, Checkpoint, load_checkpoint, read_architecture
from capsprune.data.transforms import EvaluationTransform
from capsprune.errors import DataError, ExportError
from capsprune.export import file_content, write_onnx
from capsprune.files import dump_json, replacing
from capsprune.options import ExportOptions
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.provenance import random_images, read_verification, verification_images
from capsprune.pruning.file_size import FileContent
from capsprune.summaries import ExportSummary


def export(options: ExportOptions, session: Session) -> ExportSummary:
    """Export a checkpoint.

    Without a checkpoint in the options, the run's capsule network, the one whose capsules were
    pruned where there is one, becomes the run's onnx/ (and is copied to `output`, if given). A
    checkpoint that is named is exported to `output`, or to a file of its own name beside it, and
    the run is left as it is.

    Returns:
        What was written and how it was verified; `path` is the file.

    Raises:
        CapspruneError: if there is nothing to export, or the file does not compute the same.
    """
    run = session.run
    if options.checkpoint is not None:
        source = options.checkpoint
        checkpoint = load_checkpoint(source)
        target = options.output or source.resolve().with_name(f"{source.resolve().name}.onnx")
        _check_output(target, session.overwrite)
        images = find_images(session, source, checkpoint.architecture, options.data_root)
        report = export_checkpoint(
            session, checkpoint, images, target, opset=options.opset, inline=options.inline
        )
        return ExportSummary.of(report)

    exported = run.source_of("onnx")
    run.require(exported, "export")
    source = run.path(exported)
    described = read_architecture(source)
    if options.output is not None:
        _check_output(options.output, session.overwrite)
    stage = Stage.of(session, "onnx", options, described.id)
    final = run.path("onnx") / "model.onnx"
    record = stage.done()
    if record is None:
        checkpoint = load_checkpoint(source)
        images = find_images(session, source, described, options.data_root)
        result = stage.begin() / "result"
        result.mkdir()
        report = export_checkpoint(
            session,
            checkpoint,
            images,
            result / final.name,
            opset=options.opset,
            inline=options.inline,
        )
        report["path"] = str(final)
        (result / "verification.json").write_text(
            dump_json(report, indent=1) + "\n", encoding="utf-8"
        )
        record = stage.commit(result, report["sha256"], report)
    summary = record.summary_as(ExportSummary)
    if options.output is None:
        return summary
    _copy(final, options.output)
    return summary.model_copy(update={"path": str(options.output)})


@dataclass(frozen=True)
class VerificationImages:
    """What an exported file is verified on."""

    #: uint8 [n, C, H, W].
    pixels: Tensor
    #: Where they come from, in words.
    origin: str


def find_images(
    session: Session, source: Path, described: Architecture, data_root: Path | None = None
) -> VerificationImages:
    """Find images to verify an exported file on.

    They are those that the checkpoint carries; where it is of before they did, test images; where
    the data set is not there either, noise, which is said.

    Args:
        session: of the command.
        source: the checkpoint's directory.
        described: its description.
        data_root: where data sets lie; None for where the run's first stage found them.

    Raises:
        CheckpointError: if what the checkpoint carries is damaged.
    """
    carried = read_verification(source)
    if carried is not None:
        return VerificationImages(carried, "test images that the checkpoint carries")
    try:
        splits = session.data_of(source, described, data_root, compared=False)
    except DataError as error:
        session.progress.say(f"The file is verified on noise, as there are no images: {error}")
        shown = described.data.preprocessing
        noise = random_images(shown.channels, shown.image_size, session.run.seed)
        return VerificationImages(noise, "noise")
    return VerificationImages(verification_images(splits.test), "test images")


def export_checkpoint(
    session: Session,
    checkpoint: Checkpoint,
    images: VerificationImages,
    target: Path,
    *,
    opset: int = 18,
    inline: bool = False,
) -> dict[str, Any]:
    """Export a network and verify the file on images."""
    described = checkpoint.architecture
    report = write_onnx(
        checkpoint.network,
        target,
        image_size=described.data.image_size,
        class_names=described.data.class_names,
        images=EvaluationTransform(described.data.preprocessing)(images.pixels),
        metadata=_metadata(session, described),
        opset=opset,
        inline=inline,
    )
    return {**report.to_dict(), "verified_on": images.origin}


def file_content_of(session: Session, network: nn.Module, described: Architecture) -> FileContent:
    """Find what the exported file of a network would hold.

    Args:
        session: of the command.
        network: any.
        described: a network of the same run and data.

    Raises:
        ExportError: if the network cannot be exported.
    """
    return file_content(
        network,
        image_size=described.data.image_size,
        class_names=described.data.class_names,
        metadata=_metadata(session, described),
    )


def _metadata(session: Session, described: Architecture) -> dict[str, str]:
    """Return what a file says of the network in it."""
    return {
        "model": described.model,
        "data": described.data.name,
        "normalisation": json.dumps({"mean": described.data.mean, "std": described.data.std}),
        "interpolation": described.data.interpolation,
        "checkpoint": described.id,
        "run": session.run.name,
        "accuracy": dump_json(described.metrics.get("accuracy")),
    }


def _check_output(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ExportError(f"{target} is a folder; give --output the name of a file.")
    if target.exists() and not overwrite:
        raise ExportError(
            f"{target} exists already; give --overwrite to replace it, or another --output."
        )
    if not target.parent.is_dir():
        raise ExportError(f"There is no folder {target.parent}; make it, or give another --output.")


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
