"""The stage `export`: one ONNX file that verified itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from capsprune.checkpoint import Checkpoint, load_checkpoint, read_architecture
from capsprune.data.loaders import data_loader
from capsprune.data.sources import DataSplits
from capsprune.data.transforms import evaluation_transform
from capsprune.errors import ExportError
from capsprune.export import export_onnx
from capsprune.files import dump_json, replacing
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.recipe import ExportOptions

#: Real images that an exported file is verified on.
_VERIFICATION_IMAGES = 32


def export(options: ExportOptions, session: Session) -> dict[str, Any]:
    """Export a checkpoint.

    Without a checkpoint in the options, the run's capsule network becomes the run's onnx/ (and is
    copied to `output`, if given). A checkpoint that is named is exported to `output`, or to a file
    of its own name beside it, and the run is left as it is.

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
        data = checkpoint.architecture.data
        splits = session.data(data.name, options.data_root, data.image_size)
        return export_checkpoint(
            session, checkpoint, splits, target, opset=options.opset, inline=options.inline
        )

    run.require("caps", "export")
    described = read_architecture(run.path("caps"))
    if options.output is not None:
        _check_output(options.output, session.overwrite)
    stage = Stage.of(session, "onnx", options, described.id)
    final = run.path("onnx") / "model.onnx"
    record = stage.done()
    if record is None:
        checkpoint = load_checkpoint(run.path("caps"))
        splits = session.data(described.data.name, options.data_root, described.data.image_size)
        result = stage.begin(splits) / "result"
        result.mkdir()
        report = export_checkpoint(
            session,
            checkpoint,
            splits,
            result / final.name,
            opset=options.opset,
            inline=options.inline,
        )
        report["path"] = str(final)
        (result / "verification.json").write_text(
            dump_json(report, indent=1) + "\n", encoding="utf-8"
        )
        record = stage.commit(result, report["sha256"], report)
    if options.output is None:
        return record.summary
    _copy(final, options.output)
    return {**record.summary, "path": str(options.output)}


def export_checkpoint(
    session: Session,
    checkpoint: Checkpoint,
    splits: DataSplits,
    target: Path,
    *,
    opset: int = 18,
    inline: bool = False,
) -> dict[str, Any]:
    """Export a network and verify the file on real test images."""
    described = checkpoint.architecture
    images = splits.test.select(range(min(_VERIFICATION_IMAGES, len(splits.test))))
    pixels, _ = next(iter(data_loader(images, batch_size=_VERIFICATION_IMAGES)))
    report = export_onnx(
        checkpoint.network,
        target,
        image_size=described.data.image_size,
        class_names=described.data.class_names,
        images=evaluation_transform(described.data.image_size)(pixels),
        metadata={
            "model": described.model,
            "data": described.data.name,
            "normalisation": json.dumps({"mean": described.data.mean, "std": described.data.std}),
            "checkpoint": described.id,
            "run": session.run.name,
            "accuracy": dump_json(described.metrics.get("accuracy")),
        },
        opset=opset,
        inline=inline,
    )
    return report.to_dict()


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
