"""The types of options: what values they take, and how they are explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo

from capsprune.backbones.registry import backbone
from capsprune.bounds import (
    MAX_BATCH,
    MAX_CANDIDATES,
    MAX_COUNT,
    MAX_EPOCHS,
    MAX_LEARNING_RATE,
    CapsuleSize,
    ChannelCount,
    FilePath,
    Name,
    Seed,
    Text,
)
from capsprune.capsules.heads import HEADS, LINEAR, check_attachable
from capsprune.capsules.primary.names import DENSE, PRIMARIES
from capsprune.data.names import DATA_SETS, known_data_set
from capsprune.pruning.names import CAPSULE_CRITERIA, CRITERIA, SAMPLERS
from capsprune.tables import Table


def _model_name(name: str) -> str:
    backbone(name)
    return name


def _data_name(name: str) -> str:
    return known_data_set(name)


def numbers(value: Any) -> Any:
    """Read "1,32" as (1, 32)."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _value_range(value: Any) -> Any:
    """Read "0,4095" as (0, 4095)."""
    found = numbers(value)
    if isinstance(value, str) and len(found) != 2:
        raise ValueError("it should be two numbers, such as 0,4095")
    return found


def _ascending(value_range: tuple[float, float]) -> tuple[float, float]:
    from capsprune.data.decoding import check_value_range  # which takes Pillow to import

    return check_value_range(value_range)


def _colour(colour: str) -> str:
    from capsprune.data.decoding import check_colour

    return check_colour(colour)


def _entry_of(table: Table[Any]) -> Callable[[Any], Any]:
    """Take the name of an entry, or from Python callers a callable, which is named and added."""
    return lambda value: table.name_of(value) if callable(value) else value


def _bytes(value: int | str) -> int:
    """Read "4MB" as 4,000,000."""
    from capsprune.pruning.file_size import parse_bytes  # which takes torch to import

    return value if isinstance(value, int) else parse_bytes(value)


def _none_for(default: float | str) -> Callable[[Any], Any]:
    """Write an option at its default as one that is left open, so that both compare equal."""
    return lambda value: None if value == default else value


def hyphenated(name: str) -> str:
    """Return a field's name as users write it."""
    return name.replace("_", "-")


ModelName = Annotated[Name, AfterValidator(_model_name)]
DataName = Annotated[Text, AfterValidator(_data_name)]
SamplerName = Annotated[Name, BeforeValidator(_entry_of(SAMPLERS)), AfterValidator(SAMPLERS.check)]
CriterionName = Annotated[
    Name, BeforeValidator(_entry_of(CRITERIA)), AfterValidator(CRITERIA.check)
]
CapsuleCriterionName = Annotated[
    Name, BeforeValidator(_entry_of(CAPSULE_CRITERIA)), AfterValidator(CAPSULE_CRITERIA.check)
]
Epochs = Annotated[int, Field(ge=0, le=MAX_EPOCHS)]
PositiveEpochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]
PositiveBatch = Annotated[int, Field(ge=1, le=MAX_BATCH)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CandidateCount = Annotated[int, Field(ge=1, le=MAX_CANDIDATES)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[float, Field(gt=0, le=1)]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# Options that several stages take.
DataRoot = Annotated[
    FilePath | None,
    Field(
        description="Where data sets lie; of an imagefolder that was moved, the folder itself. "
        "[default: where the run found them, else $CAPSPRUNE_DATA or ~/.cache/capsprune/data]"
    ),
]
SplitSeed = Annotated[
    Seed | None,
    AfterValidator(_none_for(0)),
    Field(
        description="Seed of the test images, which do not hang on --seed. [default: those that "
        "the data set always has here]"
    ),
]
TrainingPart = Annotated[
    Part | None,
    AfterValidator(_none_for(1)),
    Field(
        description="Train fraction: the part of the training images to use, here and in the "
        "stages that follow. [default: all]"
    ),
]
ValueRange = Annotated[
    Annotated[tuple[float, float], BeforeValidator(_value_range), AfterValidator(_ascending)]
    | None,
    Field(
        description="Values of images of more than 8 bits a pixel that become black and white, "
        "here and in the stages that follow. [default: least and greatest of all images, unless "
        "they fill 16 bits]"
    ),
]
Background = Annotated[
    Annotated[str, AfterValidator(_colour)] | None,
    Field(description="Colour that transparent images are shown on, likewise. [default: white]"),
]
LearningRate = Annotated[
    Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE)] | None,
    Field(description="Learning rate. [default: by data set]"),
]
BatchSize = Annotated[
    Annotated[int, Field(ge=2, le=MAX_BATCH)] | None,
    Field(description="Images a step. [default: by data set]"),
]
Freeze = Annotated[
    bool,
    Field(
        description="Train the head alone, or finetune the trunk too.",
        json_schema_extra={"flags": "--freeze/--finetune"},
    ),
]
Ema = Annotated[
    bool,
    Field(
        description="Of a file that holds both the weights as trained and a moving average (EMA, "
        "SWA) of them, take the average, not the former. What there is alone is taken anyway.",
        json_schema_extra={"flags": "--ema"},
    ),
]
DEFAULT_D1 = 8
#: Points of accuracy that the smallest network may lose.
DEFAULT_TOLERANCE = 0.5
#: Processors compute so many channels at a time, or a multiple.
DEFAULT_ROUND_TO = 8
SearchedRank = Annotated[int, Field(ge=1, le=MAX_COUNT)] | Literal["auto"]
#: Bytes, or as users write them.
FileBytes = Annotated[int | Text, AfterValidator(_bytes), Field(gt=0)]
PrimarySize = Annotated[CapsuleSize, Field(description="Values in a primary capsule.")]
HeadName = Annotated[Name, AfterValidator(check_attachable)]
AnyHeadName = Annotated[Name, AfterValidator(HEADS.check)]
#: What a head has by default is written as what is left open: records of before lack it.
PrimaryName = Annotated[
    Annotated[Name, AfterValidator(PRIMARIES.check)] | None,
    AfterValidator(_none_for(DENSE)),
    Field(description="PrimaryCaps: {primaries}. [default: dense, where the head has any]"),
]
CapsuleTypes = Annotated[
    ChannelCount | None,
    Field(
        description="Types of capsules at each position, of --primary spatial and pointwise. "
        "[default: 32 spatial ones; as many pointwise ones as the trunk's channels make]"
    ),
]
FactoredRank = Annotated[
    ChannelCount | None,
    Field(description="Channels between the two convolutions of --primary factored. [default: 16]"),
]

#: Marks a field that the command line takes by position.
POSITIONAL: dict[str, Any] = {"positional": True}


#: What stands in descriptions for the names of a table, which other packages may add to.
_CHOICES: dict[str, Callable[[], str]] = {
    "{all_heads}": HEADS.help,
    "{capsule_criteria}": CAPSULE_CRITERIA.help,
    "{criteria}": CRITERIA.help,
    "{data_sets}": DATA_SETS.help,
    "{heads}": lambda: HEADS.help(but=LINEAR),
    "{primaries}": PRIMARIES.help,
    "{samplers}": SAMPLERS.help,
}


def help_of(field: FieldInfo) -> str | None:
    """Return the help text of an option, with the names that there are now."""
    text = field.description
    for place, names in _CHOICES.items():
        if text is not None and place in text:
            text = text.replace(place, names())
    return text
