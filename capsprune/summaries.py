"""What the result of each stage holds: built when a stage is done, checked when run.json is read.

The keys that must be there are those that every version wrote. Others, of later versions, may be
there too, and stay. A measurement is None where there was no meter, or where it came to no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from typing_extensions import TypedDict

from capsprune.bounds import (
    MAX_ENTRIES,
    MAX_EPOCHS,
    MAX_ITERATIONS,
    Amount,
    Count,
    Name,
    Number,
    Share,
    Text,
)
from capsprune.files import dump_json, parse_json

#: Networks of one profile, and distortions with their amounts: what a table and a page can show.
_MAX_VARIANTS = _MAX_DISTORTED = 100


def _given(value: Any) -> Any:
    """Refuse None for what is left out where there is none."""
    if value is None:
        raise ValueError("it should be left out where there is none")
    return value


_Batch = Annotated[int, Field(ge=1, le=2**31)]
_ByIteration = Annotated[list[Number | None], Field(max_length=MAX_ITERATIONS)]
_Shapes = Annotated[
    dict[Name, Annotated[list[int | Name], Field(max_length=16)]], Field(max_length=16)
]
_GivenShare = Annotated[Share | None, BeforeValidator(_given)]
_GivenCount = Annotated[Count | None, BeforeValidator(_given)]
_GivenAmount = Annotated[Amount | None, BeforeValidator(_given)]
_GivenEpochs = Annotated[Annotated[int, Field(ge=0, le=MAX_EPOCHS)] | None, BeforeValidator(_given)]
_GivenText = Annotated[Text | None, BeforeValidator(_given)]
FiguresT = TypeVar("FiguresT", bound="Figures")


class Figures(BaseModel):
    """Figures that stand in a file: those that were never set are absent there too."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @classmethod
    def of(cls: type[FiguresT], values: Mapping[str, Any] | Figures) -> FiguresT:
        """Make them of what a stage computed, just as they will be read.

        Raises:
            pydantic.ValidationError: if a reader could not rely on them.
        """
        plain = values.to_dict() if isinstance(values, Figures) else values
        return cls.model_validate(parse_json(dump_json(plain)))

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain data, as a file has them."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class Asked(Figures):
    """What readers take from the options of a stage, whichever it is."""

    part: Annotated[float, Field(gt=0, le=1)] | None = None
    checkpoint: Text | None = None


class StageSummary(Figures):
    """Of any stage; those of a plug-in that is not here have nothing else that is known."""

    data_root: Text | None = None
    #: Kind of device that it was computed on.
    device: Any = None

    @property
    def headline(self) -> str:
        """In a word what came of it, for the list of runs."""
        return "done"


#: Of one class; its accuracy is None where there are no images of it.
ClassScore = TypedDict("ClassScore", {"class": Text, "images": Count, "accuracy": Share | None})


class PartSummary(Figures):
    """What a part of a network costs."""

    macs: Count
    parameters: Count
    weight_bytes: Count


class NetworkSummary(StageSummary):
    """Of the stages whose result is a network."""

    model: Name
    data: Text
    forward_macs: Count
    parameters: Count
    weights: _GivenText = None
    imported: _GivenText = None
    classifier: _GivenText = None
    accuracy: _GivenShare = None
    loss: Number | None = None
    images: _GivenCount = None
    majority_rate: Share | None = None
    worst_classes: Annotated[list[ClassScore], Field(max_length=100)] = []
    accuracy_before_finetuning: _GivenShare = None
    flops_ratio: _GivenShare = None
    candidates: _GivenCount = None
    best_candidate: Count | None = None
    epochs: _GivenEpochs = None
    kept_epoch: _GivenEpochs = None
    batch_size: _GivenCount = None
    lr: Number | None = None
    epoch_seconds: _GivenAmount = None
    threads: _GivenCount = None
    peak_memory_mb: Amount | None = None
    memory_meter: Name | None = None
    energy_joules: Amount | None = None
    energy_meter: Name | None = None
    bottleneck_channels: _GivenCount = None
    feature_size: _GivenCount = None
    primary_capsules: _GivenCount = None
    primary: _GivenText = None
    primary_rank: _GivenCount = None
    primary_types: _GivenCount = None
    routing_iterations: _GivenCount = None
    parts: Annotated[dict[Name, PartSummary], Field(max_length=100)] = {}
    trunk_macs: _GivenCount = None
    head_macs: _GivenCount = None
    training_flops: _GivenCount = None

    @property
    def headline(self) -> str:
        """Its accuracy, if it was scored."""
        return "done" if self.accuracy is None else f"{self.accuracy:.2%}"

    @property
    def is_frozen(self) -> bool:
        """Whether a head alone was trained, on a frozen trunk."""
        return False


class HeadSummary(NetworkSummary):
    """Of the stages that put a head on a trunk."""

    frozen: bool

    @property
    def is_frozen(self) -> bool:
        """Whether the head alone was trained, on a frozen trunk."""
        return self.frozen


class SlimSummary(HeadSummary):
    """Of `slim`: a capsule network that was pruned as a whole."""

    #: Primary capsules that remain, and of how many; routing iterations likewise.
    capsules: Count
    capsules_of: Count
    iterations: _GivenCount = None
    iterations_of: _GivenCount = None
    #: Rank of a factored PrimaryCaps that remains, and of what it was before it was pruned.
    primary_rank: _GivenCount = None
    primary_rank_of: _GivenCount = None
    params_ratio: _GivenShare = None
    #: Accuracy of the network that was pruned, on the same images as `accuracy`.
    accuracy_of_caps: _GivenShare = None
    capsule_criterion: _GivenText = None
    #: In words, what was asked for.
    target: _GivenText = None
    #: Points of validation accuracy that could be lost, where the smallest network was looked for.
    tolerance: Number | None = None


class ExportSummary(StageSummary):
    """Of `onnx`, and what stands in verification.json."""

    path: Text
    bytes: Count
    opset: Count
    inline: bool
    inputs: _Shapes
    outputs: _Shapes
    batches: Annotated[list[_Batch], Field(max_length=100)]
    max_abs_difference: Amount
    top1_agreement: Share
    #: Ops of heads that it uses, inlined or not; of before it was said, those that capsules had.
    operators: Annotated[list[Name], Field(max_length=100)] | None = None
    #: Where the images come from; of before it was said, they were test images.
    verified_on: Text = "test images"


class VariantSummary(Figures):
    """Of a network that was profiled."""

    forward_macs: Count
    parameters: Count
    file_bytes: Count


class MeasurementSummary(Figures):
    """Of one network at one batch size, as `capsprune.runtime.profile` measures it."""

    variant: Name
    provider: Name
    batch: _Batch
    latency_ms: Amount
    latency_ms_p25: Amount
    latency_ms_p75: Amount
    routing_share: Amount | None
    routing_kernel: Name | None = None
    images_per_second: Amount | None = None
    peak_memory_mb: Number | None = None
    gpu_memory_mb: Number | None = None
    energy_joules_per_image: Number | None = None
    portable_latency_ms: Amount | None = None
    portable_routing_share: Amount | None = None
    part_shares: Annotated[dict[Name, Amount], Field(max_length=100)] | None = None


Measurements = Annotated[list[MeasurementSummary], Field(min_length=1, max_length=MAX_ENTRIES)]


class ProfileSummary(StageSummary):
    """Of `profile`."""

    variants: Annotated[dict[Name, VariantSummary], Field(min_length=1, max_length=_MAX_VARIANTS)]
    measurements: Measurements

    @model_validator(mode="after")
    def _is_whole(self) -> ProfileSummary:
        batches = {row.batch for row in self.measurements}
        measured = {(row.variant, row.batch) for row in self.measurements}
        for variant in self.variants:
            for batch in batches:
                if (variant, batch) not in measured:
                    raise ValueError(f"it should have '{variant}' measured at batch {batch}")
        return self


class DistortedSummary(Figures):
    """Accuracies under one distortion."""

    distortion: Name
    #: An integer stays one in files.
    amount: int | Number
    unit: Name
    capsules: Share | None
    linear: Share | None = None


class AnalysisSummary(StageSummary):
    """Of `analysis`."""

    model: Name
    data: Text
    images: Count
    bottleneck_entropy: Number | None
    active_share: Share | None
    primary_length: Number | None
    never_active: Count
    never_active_share: Share
    primary_capsules: Count
    coupling_entropy: _ByIteration
    agreement_true: _ByIteration
    agreement_other: _ByIteration
    accuracy_by_iteration: _ByIteration = []
    robustness: Annotated[list[DistortedSummary], Field(max_length=_MAX_DISTORTED)]

    @property
    def figures(self) -> dict[str, float]:
        """What it found, by key; of what it has by iteration of the routing, the last."""
        return {
            key: float(value) for key in _FOUND if (value := _last(getattr(self, key))) is not None
        }


#: Keys of an analysis that are figures of the network.
_FOUND = (
    *("bottleneck_entropy", "active_share", "coupling_entropy", "agreement_true"),
    *("agreement_other", "primary_length", "never_active_share"),
)


def _last(value: Any) -> Any:
    if isinstance(value, list):
        return value[-1] if value else None
    return value
