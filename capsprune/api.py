"""The commands as functions: what `import capsprune` offers.

Each takes the options of its command, as an instance of the command's model in `capsprune.options`
or by keyword, and by keyword those of the run: `run`, `runs_dir`, `seed`, `device`, `overwrite`.
Where an option names an entry of a table (`criterion`, `sampler`), the entry itself will do too.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any, Protocol, TypeVar

from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    ExportOptions,
    Options,
    ProfileOptions,
    PruneCapsOptions,
    PruneOptions,
    TrainOptions,
)
from capsprune.pipeline.commands import Outcome, run_command
from capsprune.progress import Progress
from capsprune.stages import COMMANDS

OptionsT_contra = TypeVar("OptionsT_contra", bound=Options, contravariant=True)

_DOC = """{what}

Args:
    options: of the command `{command}`; the same by keyword stand before them.
    progress: where to say how it goes; None to say nothing.
    values: options by keyword, and those of the run.

Returns:
    What came of it: `summary`, `path`, `seconds`.

Raises:
    CapspruneError: with one sentence of cause and remedy, as the command prints it.

Example:
{example}
"""


class Performed(Protocol[OptionsT_contra]):
    """A command as a function."""

    def __call__(
        self,
        options: OptionsT_contra | None = None,
        /,
        *,
        progress: Progress | None = None,
        **values: Any,
    ) -> Outcome:
        """Do what the command does."""
        ...


def _function(
    name: str, command: str, kind: type[OptionsT_contra], what: str, example: str
) -> Performed[OptionsT_contra]:
    """Make a function of a command, whose options `help` and editors see.

    Args:
        name: of the function.
        command: that it is.
        kind: the command's own options.
        what: it does.
        example: a doctest.
    """

    def call(
        options: OptionsT_contra | None = None,
        /,
        *,
        progress: Progress | None = None,
        **values: Any,
    ) -> Outcome:
        given = {} if options is None else dict(options)
        return run_command(command, {**given, **values}, progress)

    options, progress, _ = inspect.signature(call).parameters.values()
    fields = [
        inspect.Parameter(
            field_name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if field.is_required() else field.default,
        )
        for model in (kind, COMMANDS[command].shared)
        for field_name, field in model.model_fields.items()
    ]
    call.__signature__ = inspect.Signature([options, *fields, progress])  # type: ignore[attr-defined]
    call.__name__ = call.__qualname__ = name
    call.__doc__ = _DOC.format(
        what=what, command=command, example=textwrap.indent(example.strip(), "    ")
    )
    return call


train = _function(
    "train",
    "train",
    TrainOptions,
    "Train the baseline: the unpruned backbone with its linear classifier.",
    """
>>> import capsprune
>>> baseline = capsprune.train(
...     model="mobilenet_v1", data="digits", image_size=16, part=0.2, epochs=1
... )
>>> baseline.path
PosixPath('runs/default/baseline')
""",
)

prune = _function(
    "prune",
    "prune",
    PruneOptions,
    """Prune the baseline to a part of its size, and fine-tune it.

Where the run has no baseline, `model` is trained first.""",
    """
>>> import capsprune
>>> from capsprune.options import PruneOptions
>>> pruned = capsprune.prune(PruneOptions(flops=0.5, candidates=2), epochs=0)
>>> round(pruned.summary.flops_ratio, 1)
0.5
""",
)

attach_capsules = _function(
    "attach_capsules",
    "attach-caps",
    AttachCapsOptions,
    "Put a capsule head on the pruned trunk, and train it.",
    """
>>> import capsprune
>>> caps = capsprune.attach_capsules(epochs=1)
>>> network = capsprune.load_checkpoint(caps.path).network
>>> type(network).__name__
'CapsuleNetwork'
""",
)

prune_capsules = _function(
    "prune_capsules",
    "prune-caps",
    PruneCapsOptions,
    "Prune the capsule network as a whole, head and trunk, and fine-tune it.",
    """
>>> import capsprune
>>> slim = capsprune.prune_capsules(capsules=5, candidates=2, epochs=0)
>>> slim.summary.capsules
5
""",
)

export_onnx = _function(
    "export_onnx",
    "export",
    ExportOptions,
    """Export the capsule network to one ONNX file, and verify it.

A network that belongs to no run is written by `capsprune.export.write_onnx`.""",
    """
>>> import capsprune
>>> exported = capsprune.export_onnx()
>>> session = capsprune.session(exported.summary.path)
>>> [output.name for output in session.get_outputs()]
['class_probabilities', 'poses']
""",
)

profile = _function(
    "profile",
    "profile",
    ProfileOptions,
    "Measure the exported network beside the unpruned ones, in ONNX Runtime.",
    """
>>> import capsprune
>>> profiled = capsprune.profile(batch=1, repeats=2)
>>> list(profiled.summary.variants)
['unpruned, linear', 'unpruned, capsules', 'pruned, capsules', 'slim, capsules']
""",
)

analyse = _function(
    "analyse",
    "analyse",
    AnalyseOptions,
    "Look into the capsules, and measure the accuracy on distorted images.",
    """
>>> import capsprune
>>> analysis = capsprune.analyse(images=20)
>>> analysis.summary.images
20
""",
)
