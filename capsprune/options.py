"""The options of every command, which are a recipe's fields and the arguments of Python too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from capsprune.bounds import (
    MAX_COUNT,
    MAX_REPEATS,
    MAX_WORKERS,
    CapsuleSize,
    ChannelCount,
    ClassCount,
    FilePath,
    ImageSize,
    IterationCount,
    Seed,
    Text,
    cut,
    requirement,
    shown,
)
from capsprune.capsules.heads import DYNAMIC
from capsprune.errors import CapspruneError
from capsprune.option_types import (
    DEFAULT_D1,
    DEFAULT_ROUND_TO,
    DEFAULT_TOLERANCE,
    POSITIONAL,
    AnyHeadName,
    Background,
    BatchSize,
    CandidateCount,
    CapsuleCriterionName,
    CapsuleTypes,
    CriterionName,
    DataName,
    DataRoot,
    Ema,
    Epochs,
    FactoredRank,
    FileBytes,
    Freeze,
    HeadName,
    LearningRate,
    ModelName,
    Part,
    PositiveBatch,
    PositiveCount,
    PositiveEpochs,
    Precision,
    PrimaryName,
    PrimarySize,
    Ratio,
    SamplerName,
    SearchedRank,
    SplitSeed,
    TrainingPart,
    ValueRange,
    hyphenated,
    numbers,
)
from capsprune.pruning.names import DEFAULT_CAPSULE_CRITERION


class RecipeError(CapspruneError):
    """An option or a recipe's field is unknown, missing, or out of range."""


class Options(BaseModel):
    """Options of one stage."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=hyphenated,
        populate_by_name=True,
        # Schemas are built where options are parsed: the help text needs none.
        defer_build=True,
    )


class TrainOptions(Options):
    """Options of `train`: the baseline, an unpruned backbone with its linear classifier."""

    model: ModelName = Field(
        description="Backbone, such as resnet50, mobilenet_v1, capsnet or timm:NAME."
    )
    data: DataName = Field("digits", description="Data set: {data_sets}.")
    data_root: DataRoot = None
    image_size: ImageSize | None = Field(
        None, description="Resolution: pixels a side shown to the network. [default: by data set]"
    )
    part: TrainingPart = None
    split_seed: SplitSeed = None
    value_range: ValueRange = None
    background: Background = None
    weights: Text = Field("auto", description="Starting weights: auto, imagenet, none, or a file.")
    ema: Ema = False
    epochs: Epochs | None = Field(
        None, description="Epochs; 0 keeps the starting weights. [default: by data set]"
    )
    lr: LearningRate = None
    batch_size: BatchSize = None


class SearchOptions(Options):
    """Options of the stages that search for a strategy, remove channels and fine-tune the rest."""

    flops: Part | None = Field(
        None,
        description="FLOPs (multiply-accumulates) that remain, as a part of the unpruned; 1 "
        "removes nothing, to compare with. [default: 0.5 where no other size is given]",
    )
    params: Ratio | None = Field(
        None,
        description="Parameters that remain, likewise. With --flops, neither is passed and one of "
        "them is met.",
    )
    latency: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = Field(
        None,
        description="Most milliseconds for one image, measured on this machine in ONNX Runtime.",
    )
    candidates: CandidateCount = Field(40, description="Strategies to try.")
    sampler: SamplerName = Field("random", description="Who proposes strategies: {samplers}.")
    reduction_factor: CandidateCount | None = Field(
        None,
        description="Successive halving: try all candidates on few batches, then the best one in "
        "this many on that many times as many, and so on; 1 tries each in full. [default: 4 from "
        "100 candidates on, else 1]",
    )
    criterion: CriterionName | None = Field(
        None,
        description="Which channels of a group go first: {criteria}. [default: the "
        "strategy's, else l1]",
    )
    max_rate: Ratio | None = Field(
        None,
        description="Max pruning ratio: the most of a group that a strategy removes. [default: by "
        "the target]",
    )
    round_to: ChannelCount = Field(
        DEFAULT_ROUND_TO,
        description="Keep channels in multiples of this: other counts save FLOPs and little time.",
    )
    bn_batches: PositiveCount = Field(
        20, description="Training batches from which a candidate's BN statistics are recomputed."
    )
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = Field(
        1, description="Processes that try candidates."
    )
    storage: Text | None = Field(
        None,
        description="Database for the candidates, such as postgresql://user@host/database, on "
        "which several machines work with copies of this run. [default: a file in the run]",
    )
    strategy: FilePath | None = Field(
        None, description="Apply this strategy.json instead of searching."
    )
    epochs: Epochs | None = Field(None, description="Epochs of fine-tuning. [default: by data set]")
    lr: LearningRate = None
    batch_size: BatchSize = None


class BaselineToTrain(Options):
    """Which baseline a stage trains first where the run has none."""

    model: ModelName | None = Field(
        None, description="Backbone to train first where the run has no baseline."
    )
    data: DataName | None = Field(
        None, description="Data set, likewise. [default: the baseline's, else digits]"
    )
    data_root: DataRoot = None
    image_size: ImageSize | None = Field(
        None, description="Pixels a side, likewise. [default: the baseline's, else by data set]"
    )
    value_range: ValueRange = None
    background: Background = None
    split_seed: Seed | None = Field(
        None, description="Seed of the test images, likewise. [default: the baseline's]"
    )


class PruneOptions(SearchOptions, BaselineToTrain):
    """Options of `prune`: search for a strategy, remove channels, fine-tune."""

    primary_caps: PositiveCount | None = Field(
        None, description="Primary capsules that the pruned trunk will have: S / D1, rounded down."
    )
    d1: PrimarySize = DEFAULT_D1
    head: AnyHeadName = Field(
        DYNAMIC, description="Untrained head with which --latency is measured: {all_heads}."
    )


class CapsulesToPrune(Options):
    """Which capsule network a stage prunes, and the sizes that only such a network has."""

    checkpoint: FilePath | None = Field(
        None,
        description="Checkpoint of a capsule network. [default: the run's caps/]",
        json_schema_extra=POSITIONAL,
    )
    data_root: DataRoot = None
    tolerance: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="Find the smallest network whose validation accuracy is at most so many points "
        f"below that of the given one. [default: {DEFAULT_TOLERANCE} where no size is given]",
    )
    capsules: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = Field(
        None, description="Primary capsules that remain: how many, or below 1 the part of them."
    )
    primary_rank: SearchedRank | None = Field(
        None,
        description="Factor a dense PrimaryCaps in two layers with so many channels between them; "
        "auto leaves the number to the search. [default: auto with --tolerance, else as it is]",
    )
    iterations: IterationCount | None = Field(
        None, description="Routing iterations that remain. [default: left to the search]"
    )
    file_size: FileBytes | None = Field(
        None, description="Most bytes of the exported file, such as 4MB."
    )


class PruneCapsOptions(SearchOptions, CapsulesToPrune):
    """Options of `prune-caps`: prune a whole capsule network, head and trunk, and fine-tune it."""

    flops: Part | None = Field(
        None,
        description="FLOPs (multiply-accumulates) of the whole network that remain, as a part of "
        "the given one's; 1 removes nothing, to compare with.",
    )
    params: Ratio | None = Field(
        None,
        description="Parameters of the whole network that remain, likewise. With --flops, neither "
        "is passed and one of them is met.",
    )
    capsule_criterion: CapsuleCriterionName | None = Field(
        None,
        description="Which primary capsules go first: {capsule_criteria}. [default: the "
        f"strategy's, else {DEFAULT_CAPSULE_CRITERION}]",
    )
    freeze: Freeze = False


class ImportOptions(Options):
    """Options of `import-checkpoint`: a backbone that was pruned elsewhere."""

    checkpoint: FilePath = Field(
        description="File with the state dict of a pruned backbone.", json_schema_extra=POSITIONAL
    )
    model: ModelName = Field(description="Backbone that was pruned, such as resnet50.")
    ema: Ema = False
    data: DataName = Field("digits", description="Data set to go on with: {data_sets}.")
    data_root: DataRoot = None
    image_size: ImageSize | None = Field(
        None, description="Resolution: pixels a side shown to the network. [default: by data set]"
    )
    part: TrainingPart = None
    value_range: ValueRange = None
    background: Background = None
    split_seed: SplitSeed = None


class HeadOptions(Options):
    """Options of both stages that put a head on the pruned trunk."""

    checkpoint: FilePath | None = Field(
        None,
        description="Checkpoint of a backbone. [default: the run's pruned/]",
        json_schema_extra=POSITIONAL,
    )
    data_root: DataRoot = None
    freeze: Freeze = False
    epochs: PositiveEpochs | None = Field(None, description="Epochs. [default: by data set]")
    lr: LearningRate = None
    batch_size: BatchSize = None


class AttachCapsOptions(HeadOptions):
    """Options of `attach-caps`: a capsule head on the pruned trunk, trained."""

    head: HeadName = Field(DYNAMIC, description="Capsule head: {heads}.")
    iterations: IterationCount | None = Field(
        None, description="Routing iterations. [default: the head's; dynamic has 3]"
    )
    d1: CapsuleSize | None = Field(
        None,
        description="Values in a primary capsule. [default: as --d1 of prune said, else the "
        f"head's; dynamic has {DEFAULT_D1}]",
    )
    d2: CapsuleSize | None = Field(
        None, description="Values in an output capsule. [default: the head's; dynamic has 16]"
    )
    primary: PrimaryName = None
    types: CapsuleTypes = None
    primary_rank: FactoredRank = None


class AttachLinearOptions(HeadOptions):
    """Options of `attach-linear`: one linear layer on the same trunk, to compare with."""


class ExportOptions(Options):
    """Options of `export`: one verified ONNX file."""

    checkpoint: FilePath | None = Field(
        None,
        description="Checkpoint to export. [default: the run's caps/]",
        json_schema_extra=POSITIONAL,
    )
    data_root: DataRoot = None
    onnx: bool = Field(
        True,
        description="Write ONNX: the one format there is.",
        json_schema_extra={"flags": "--onnx"},
    )
    output: FilePath | None = Field(
        None, description="File to write. [default: onnx/model.onnx in the run]"
    )
    opset: Annotated[int, Field(ge=18, le=23)] = Field(18, description="ONNX operator set.")
    inline: bool = Field(
        False,
        description="Write standard operators in place of the routing node, for runtimes that know "
        "no model-local functions.",
        json_schema_extra={"flags": "--inline"},
    )


class ProfileOptions(Options):
    """Options of `profile`: latency, throughput and memory in ONNX Runtime."""

    batch: Annotated[
        tuple[PositiveBatch, ...], BeforeValidator(numbers), Field(min_length=1, max_length=1000)
    ] = Field((1, 32), description="Batch sizes, separated by commas.")
    provider: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to run: auto, cpu or cuda."
    )
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = Field(
        30, description="Timed repeats of each measurement."
    )


class AnalyseOptions(Options):
    """Options of `analyse`: what the capsules do, and how robust the network is."""

    data_root: DataRoot = None
    images: PositiveCount = Field(2000, description="Test images to use, at most.")


class EvaluateOptions(Options):
    """Options of `evaluate`: accuracy and loss of a checkpoint."""

    checkpoint: FilePath | None = Field(
        None,
        description="Checkpoint. [default: what the run finished last]",
        json_schema_extra=POSITIONAL,
    )
    data_root: DataRoot = None
    split: Literal["test", "validation", "train"] = Field("test", description="Images to use.")
    batch_size: PositiveBatch = Field(128, description="Images a step.")


class InspectOptions(Options):
    """Options of `inspect`: sizes and costs, without data or training."""

    # Nothing but None says that an option was left open: a run's checkpoints have their own.
    model: ModelName | None = Field(
        None,
        description="Backbone. [default: the strategy's; without one, the run's checkpoints are "
        "inspected]",
    )
    strategy: FilePath | None = Field(None, description="Strategy to apply to the backbone.")
    image_size: ImageSize | None = Field(None, description="Pixels a side. [default: 224]")
    classes: ClassCount | None = Field(None, description="Number of classes. [default: 1000]")
    freeze: bool | None = Field(
        None,
        description="Count the training of the head alone, or of the trunk too. [default: "
        "finetune]",
        json_schema_extra={"flags": "--freeze/--finetune"},
    )
    head: HeadName | None = Field(
        None, description=f"Capsule head: {{heads}}. [default: {DYNAMIC}]"
    )
    iterations: IterationCount | None = Field(
        None, description="Routing iterations. [default: the head's; dynamic has 3]"
    )
    d1: CapsuleSize | None = Field(
        None,
        description=f"Values in a primary capsule. [default: the head's; dynamic has {DEFAULT_D1}]",
    )
    d2: CapsuleSize | None = Field(
        None, description="Values in an output capsule. [default: the head's; dynamic has 16]"
    )
    primary: PrimaryName = None
    types: CapsuleTypes = None
    primary_rank: FactoredRank = None
    capsules: PositiveCount | None = Field(
        None, description="Primary capsules that remain when the others are pruned. [default: all]"
    )


class RunOptions(Options):
    """Which run a command is about."""

    run: Text = Field("default", description="Name of the run.")
    runs_dir: FilePath = Field(Path("runs"), description="Folder that holds the runs.")


class SessionOptions(RunOptions):
    """Options that every stage takes."""

    seed: Seed | None = Field(
        None, description="Seed of everything random. [default: the run's, else 0]"
    )
    device: Text = Field("auto", description="auto, cpu, cuda, or cuda:N.")
    overwrite: bool = Field(
        False,
        description="Do a finished stage again, replacing what it left.",
        json_schema_extra={"flags": "--overwrite"},
    )


class ComputingOptions(SessionOptions):
    """Options that every stage takes which trains a network, or shows it images."""

    precision: Precision = Field(
        "32-true", description="Precision of training; of inference, where nothing is trained."
    )


OptionsT = TypeVar("OptionsT", bound=Options)


def no_such_field(label: str, known: Iterable[str]) -> RecipeError:
    """Make the error of an unknown field, which names the nearest known one.

    Args:
        label: the field, and where it stands.
        known: names of fields that there are.
    """
    names = sorted(hyphenated(name) for name in known)
    last = label.rpartition(" ")[2].rpartition(".")[2].removeprefix("--")
    near = difflib.get_close_matches(last, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}."
    return RecipeError(f"{label} is no field of a recipe; {hint}")


def parse_options(kind: type[OptionsT], values: Any, where: str = "--") -> OptionsT:
    """Make options out of plain values.

    Args:
        kind: which options.
        values: by field name.
        where: what stands before a field's name in messages: "--" on the command line, or the
            name of the recipe and a colon.

    Raises:
        RecipeError: if a field is unknown, missing or out of range; one sentence for the first.
        CapspruneError: if a model or data set is unknown.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_first_problem(kind, error, where)) from None


def _first_problem(kind: type[Options], error: ValidationError, where: str) -> str:
    # A misspelt field is also a missing one: the spelling is what to fix.
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [cut(str(part), 40) for part in problem["loc"]]
    owner: type[BaseModel] = kind
    field = None
    for part in location:
        name = part.replace("-", "_")
        field = owner.model_fields.get(name)
        if field is None:
            break
        for inner in (field.annotation, *get_args(field.annotation)):  # X, or X | None
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                owner = inner
    names = [hyphenated(part) for part in location if not part.isdigit() and part != "[key]"]
    label = where + ".".join(names if where != "--" else names[:1])
    if problem["type"] == "extra_forbidden":
        return str(no_such_field(label, owner.model_fields))
    if problem["type"] == "missing":
        return f"{label} is missing; give it."
    label = label.removesuffix(".")  # the whole is wrong, not a field of it
    return f"{label} {shown(problem['input'])} is not accepted; {requirement(problem['msg'])}."
