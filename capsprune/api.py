"""The commands as functions: what `import capsprune` offers.

Each takes the options of its command, as an instance of the command's model in `capsprune.options`
or by keyword, and by keyword those of the run: `run`, `runs_dir`, `seed`, `device`, `overwrite`.
Where an option names an entry of a table (`criterion`, `sampler`), the entry itself will do too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    ExportOptions,
    Options,
    ProfileOptions,
    PruneOptions,
    TrainOptions,
)
from capsprune.pipeline.commands import Outcome, run_command
from capsprune.progress import Progress
from capsprune.stages import COMMANDS


def _signed(command: str) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Return a decorator that lets `help` and editors see the options of a command."""

    def sign(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Outcome:
            return function(*args, **options)

        row = COMMANDS[command]
        given, *_ = inspect.signature(function).parameters.values()
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for model in (row.options, row.shared)
            for name, field in model.model_fields.items()
            for default in (None if field.is_required() else field.default,)
        ]
        progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=None)
        call.__signature__ = inspect.Signature([given, *fields, progress])  # type: ignore[attr-defined]
        return call

    return sign


def _perform(
    command: str, options: Options | None, values: dict[str, Any], progress: Progress | None
) -> Outcome:
    given = {} if options is None else dict(options)
    return run_command(command, {**given, **values}, progress)


@_signed("train")
def train(
    options: TrainOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Train the baseline: the unpruned backbone with its linear classifier.

    Args:
        options: of the command `train`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> baseline = capsprune.train(
        ...     model="mobilenet_v1", data="digits", image_size=16, part=0.2, epochs=1
        ... )
        >>> baseline.path
        PosixPath('runs/default/baseline')
    """
    return _perform("train", options, values, progress)


@_signed("prune")
def prune(
    options: PruneOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Prune the baseline to a part of its size, and fine-tune it.

    Where the run has no baseline, `model` is trained first.

    Args:
        options: of the command `prune`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> from capsprune.options import PruneOptions
        >>> pruned = capsprune.prune(PruneOptions(flops=0.5, candidates=2), epochs=0)
        >>> round(pruned.summary.flops_ratio, 1)
        0.5
    """
    return _perform("prune", options, values, progress)


@_signed("attach-caps")
def attach_capsules(
    options: AttachCapsOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Put a capsule head on the pruned trunk, and train it.

    Args:
        options: of the command `attach-caps`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> caps = capsprune.attach_capsules(epochs=1)
        >>> network = capsprune.load_checkpoint(caps.path).network
        >>> type(network).__name__
        'CapsuleNetwork'
    """
    return _perform("attach-caps", options, values, progress)


@_signed("export")
def export_onnx(
    options: ExportOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Export the capsule network to one ONNX file, and verify it.

    A network that belongs to no run is written by `capsprune.export.write_onnx`.

    Args:
        options: of the command `export`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> exported = capsprune.export_onnx()
        >>> session = capsprune.session(exported.summary.path)
        >>> [output.name for output in session.get_outputs()]
        ['class_probabilities', 'poses']
    """
    return _perform("export", options, values, progress)


@_signed("profile")
def profile(
    options: ProfileOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Measure the exported network beside the unpruned ones, in ONNX Runtime.

    Args:
        options: of the command `profile`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> profiled = capsprune.profile(batch=1, repeats=2)
        >>> list(profiled.summary.variants)
        ['unpruned, linear', 'unpruned, capsules', 'pruned, capsules']
    """
    return _perform("profile", options, values, progress)


@_signed("analyse")
def analyse(
    options: AnalyseOptions | None = None, /, *, progress: Progress | None = None, **values: Any
) -> Outcome:
    """Look into the capsules, and measure the accuracy on distorted images.

    Args:
        options: of the command `analyse`; the same by keyword stand before them.
        progress: where to say how it goes; None to say nothing.
        values: options by keyword, and those of the run.

    Returns:
        What came of it: `summary`, `path`, `seconds`.

    Raises:
        CapspruneError: with one sentence of cause and remedy, as the command prints it.

    Example:
        >>> import capsprune
        >>> analysis = capsprune.analyse(images=20)
        >>> analysis.summary.images
        20
    """
    return _perform("analyse", options, values, progress)
