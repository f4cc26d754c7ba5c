"""The stages of a run and the commands that work in one: open tables of which all else is read.

A package adds a stage with `add_stage`, from the module that it announces (see `capsprune.tables`):
the stage has a command, a place in recipes, in `runs`, and behind the stage that it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capsprune.errors import RunError
from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    AttachLinearOptions,
    ComputingOptions,
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    InspectOptions,
    Options,
    ProfileOptions,
    PruneCapsOptions,
    PruneOptions,
    RecipeError,
    RunOptions,
    SessionOptions,
    TrainOptions,
    parse_options,
)
from capsprune.summaries import (
    AnalysisSummary,
    ExportSummary,
    HeadSummary,
    NetworkSummary,
    ProfileSummary,
    SlimSummary,
    StageSummary,
)
from capsprune.tables import Table, resolve


@dataclass(frozen=True)
class Command:
    """A command that works in a run."""

    name: str
    #: Its own options.
    options: type[Options]
    #: Options that it shares with others: at least which run it is about.
    shared: type[RunOptions]
    #: Called with its options and the session; with its options and the shared ones, where those
    #: are no `SessionOptions`. A function, or where it is defined, as "module:attribute".
    work: str | Callable[[Any, Any], Any]
    #: Its help text: a sentence, and further ones after an empty line.
    help: str
    #: Called with the `capsprune.pipeline.commands.Outcome`, and whether to say more; as `work`.
    printing: str | Callable[[Any, bool], None]
    #: The stage that it makes, if any.
    stage: str | None = None
    #: Whether it makes the run where there is none.
    begins: bool = False
    #: Further words with which messages tell users to give it.
    flags: str = ""

    @property
    def function(self) -> Callable[[Any, Any], Any]:
        """What it does, imported when it is asked for."""
        return resolve(self.work) if isinstance(self.work, str) else self.work

    @property
    def show(self) -> Callable[[Any, bool], None]:
        """What prints its outcome, imported when it is asked for."""
        return resolve(self.printing) if isinstance(self.printing, str) else self.printing

    @property
    def field(self) -> str:
        """Its name in recipes and in Python."""
        return self.name.replace("-", "_")

    @property
    def words(self) -> str:
        """What a message tells users to give."""
        return " ".join(filter(None, (self.name, self.flags)))

    @property
    def is_precise(self) -> bool:
        """Whether its networks compute in the precision that is asked for."""
        return issubclass(self.shared, ComputingOptions)

    def makes_run(self, options: Options) -> bool:
        """Tell whether it makes the run where there is none, as it does for a named checkpoint."""
        return self.begins or getattr(options, "checkpoint", None) is not None

    def parse(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return its own options and the shared ones out of plain values.

        Args:
            values: by field name.

        Raises:
            RecipeError: if a value is unknown, missing or out of range.
            CapspruneError: if a name among them is unknown.
        """
        models = (self.options, self.shared)
        unknown = [key for key in values if not any(key in m.model_fields for m in models)]
        if unknown:
            known = sorted(key for model in models for key in model.model_fields)
            raise RecipeError(
                f"{self.name} has no option '{unknown[0]}'; it has {', '.join(known)}."
            )
        options, shared = (
            parse_options(model, {k: v for k, v in values.items() if k in model.model_fields})
            for model in models
        )
        return options, shared


@dataclass(frozen=True)
class StageKind:
    """What is known of a stage before it is done."""

    name: str
    #: The command that makes it; further ones may.
    command: Command
    #: What its result holds.
    summary: type[StageSummary] = StageSummary
    #: What it may be made from: of these stages, the first one that is finished.
    follows: tuple[str, ...] = ()
    #: Leaves one JSON file, not a folder.
    is_file: bool = False
    #: Leaves a checkpoint.
    is_checkpoint: bool = False
    #: Heading of what is printed of it.
    title: str = ""
    #: The network's name in the table of a whole run; empty for a stage that makes none.
    network: str = ""
    #: Whether a recipe does it: always, unless it says null, or where it names it.
    in_recipes: Literal["always", "by default", "where named"] = "where named"
    #: A finished cell of a sweep has it.
    in_cells: bool = False

    @property
    def function(self) -> Callable[[Any, Any], Any]:
        """What makes it: called with options and session."""
        return self.command.function

    def path(self, run: Path) -> Path:
        """Where it leaves its results in a run's folder."""
        return run / (f"{self.name}.json" if self.is_file else self.name)


STAGES: Table[StageKind] = Table("stage", {}, error=RunError)
COMMANDS: Table[Command] = Table("command", {})


def add_command(command: Command) -> Command:
    """Add a command.

    Raises:
        CapspruneError: if there is one of that name.
    """
    return COMMANDS.register(command.name, command.help.partition("\n")[0])(command)


def add_stage(stage: StageKind) -> StageKind:
    """Add a stage, and its command.

    Raises:
        CapspruneError: if there is a stage or a command of that name.
    """
    STAGES.register(stage.name, stage.title)(stage)
    add_command(stage.command)
    return stage


def commands_of(stage: str) -> list[Command]:
    """Return the commands that make a stage."""
    return [command for name in COMMANDS if (command := COMMANDS[name]).stage == stage]


def checkpoint_stages() -> list[str]:
    """Return the stages that leave a checkpoint, in the order in which they are done."""
    return [name for name in STAGES if STAGES[name].is_checkpoint]


add_stage(
    StageKind(
        "baseline",
        Command(
            "train",
            TrainOptions,
            ComputingOptions,
            "capsprune.pipeline.train:train",
            "Train the baseline: the unpruned backbone.",
            "capsprune.terminal.outcomes:show_checkpoint",
            stage="baseline",
            begins=True,
        ),
        summary=NetworkSummary,
        is_checkpoint=True,
        title="Baseline",
        network="unpruned, linear",
        in_recipes="always",
    )
)
add_stage(
    StageKind(
        "pruned",
        Command(
            "prune",
            PruneOptions,
            ComputingOptions,
            "capsprune.pipeline.prune:prune",
            "Prune the baseline to a part of its FLOPs and fine-tune it.\n\n"
            "Where the run has no baseline, one is trained first.",
            "capsprune.terminal.outcomes:show_checkpoint",
            stage="pruned",
            begins=True,
        ),
        summary=NetworkSummary,
        follows=("baseline",),
        is_checkpoint=True,
        title="Pruned backbone",
        network="pruned, linear",
        in_recipes="always",
        in_cells=True,
    )
)
add_command(
    Command(
        "import-checkpoint",
        ImportOptions,
        SessionOptions,
        "capsprune.pipeline.import_checkpoint:import_checkpoint",
        "Take a backbone that was pruned elsewhere into the run.\n\n"
        "The channel counts are read off the tensors of its state dict. A classifier for another "
        "number\nof classes than the data set has is drawn anew.",
        "capsprune.terminal.outcomes:show_checkpoint",
        stage="pruned",
        begins=True,
    )
)
add_stage(
    StageKind(
        "caps",
        Command(
            "attach-caps",
            AttachCapsOptions,
            ComputingOptions,
            "capsprune.pipeline.attach:attach_caps",
            "Put a capsule head on the pruned trunk and train it.",
            "capsprune.terminal.outcomes:show_checkpoint",
            stage="caps",
        ),
        summary=HeadSummary,
        follows=("pruned",),
        is_checkpoint=True,
        title="Pruned capsule network",
        network="pruned, capsules",
        in_recipes="always",
        in_cells=True,
    )
)
add_stage(
    StageKind(
        "slim",
        Command(
            "prune-caps",
            PruneCapsOptions,
            ComputingOptions,
            "capsprune.pipeline.prune_caps:prune_caps",
            "Prune the capsule network as a whole, and fine-tune it.\n\n"
            "Primary capsules, the rank of PrimaryCaps, routing iterations and the trunk's "
            "channels are\npruned together, to the sizes that are given; without any, to the "
            "smallest network that is as\ngood within --tolerance.",
            "capsprune.terminal.outcomes:show_checkpoint",
            stage="slim",
        ),
        summary=SlimSummary,
        follows=("caps",),
        is_checkpoint=True,
        title="Slim capsule network",
        network="slim, capsules",
    )
)
add_stage(
    StageKind(
        "linear",
        Command(
            "attach-linear",
            AttachLinearOptions,
            ComputingOptions,
            "capsprune.pipeline.attach:attach_linear",
            "Train a linear classifier to compare with.\n\n"
            "It is one linear layer on the pooled trunk that the capsule layers get, trained on "
            "the same\nschedule.",
            "capsprune.terminal.outcomes:show_checkpoint",
            stage="linear",
        ),
        summary=HeadSummary,
        follows=("pruned",),
        is_checkpoint=True,
        title="Pruned backbone with a new linear classifier",
        network="pruned, linear, again",
        in_cells=True,
    )
)
add_stage(
    StageKind(
        "onnx",
        Command(
            "export",
            ExportOptions,
            SessionOptions,
            "capsprune.pipeline.export:export",
            "Export the capsule network to one ONNX file, and verify it.",
            "capsprune.terminal.outcomes:show_export",
            stage="onnx",
            flags="--onnx",
        ),
        summary=ExportSummary,
        follows=("slim", "caps"),
        title="ONNX file",
        in_recipes="always",
        in_cells=True,
    )
)
add_stage(
    StageKind(
        "profile",
        Command(
            "profile",
            ProfileOptions,
            SessionOptions,
            "capsprune.pipeline.profile:profile",
            "Measure the exported network beside the unpruned one.\n\n"
            "All of them run in ONNX Runtime, interleaved, after warm-up.",
            "capsprune.terminal.outcomes:show_profile",
            stage="profile",
        ),
        summary=ProfileSummary,
        follows=("onnx",),
        is_file=True,
        title="Profile in ONNX Runtime",
        in_recipes="by default",
    )
)
add_stage(
    StageKind(
        "analysis",
        Command(
            "analyse",
            AnalyseOptions,
            ComputingOptions,
            "capsprune.pipeline.analyse:analyse",
            "Look into the capsules, and distort the images.\n\n"
            "That is: entropy of the bottleneck, what routing does in each iteration, dead "
            "capsules,\nand accuracy under rotation, translation, scale and shear, beside the "
            "linear baseline's.",
            "capsprune.terminal.outcomes:show_analysis",
            stage="analysis",
        ),
        summary=AnalysisSummary,
        follows=("slim", "caps"),
        is_file=True,
        title="Analysis",
        in_cells=True,
    )
)
add_command(
    Command(
        "evaluate",
        EvaluateOptions,
        ComputingOptions,
        "capsprune.pipeline.evaluate:evaluate_checkpoint",
        "Score a checkpoint on images of the run's split.",
        "capsprune.terminal.outcomes:show_evaluation",
    )
)
add_command(
    Command(
        "inspect",
        InspectOptions,
        RunOptions,
        "capsprune.pipeline.inspect:inspect",
        "Show sizes and costs, without data or training.\n\n"
        "They are those of a backbone with a capsule head, or, without --model and --strategy, of "
        "the\ncheckpoints of a run.",
        "capsprune.terminal.outcomes:show_inspection",
    )
)
