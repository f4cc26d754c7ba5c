"""What the summary of each finished stage holds: checked where run.json is read, relied on behind.

The keys that must be there are those that every version wrote. Others, of later versions, may be
there too. A measurement is None where there was no meter, or where it came to no number.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from typing_extensions import NotRequired, Required, TypedDict

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

_LATER_VERSIONS_TOO = ConfigDict(extra="allow", strict=True)

#: Networks of one profile, and distortions with their amounts: what a table and a page can show.
_MAX_VARIANTS = _MAX_DISTORTED = 100

_Batch = Annotated[int, Field(ge=1, le=2**31)]
_Epochs = Annotated[int, Field(ge=0, le=MAX_EPOCHS)]
_ByIteration = Annotated[list[Number | None], Field(max_length=MAX_ITERATIONS)]
_Shapes = Annotated[
    dict[Name, Annotated[list[int | Name], Field(max_length=16)]], Field(max_length=16)
]


class Asked(TypedDict):
    """What readers take from the options of a stage, whichever it is."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    part: NotRequired[Annotated[float, Field(gt=0, le=1)] | None]
    checkpoint: NotRequired[Text | None]


class NetworkSummary(TypedDict, total=False):
    """Of the stages whose result is a network."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    model: Required[Name]
    data: Required[Text]
    forward_macs: Required[Count]
    parameters: Required[Count]
    data_root: Text | None
    weights: Text
    imported: Text
    classifier: Text
    accuracy: Share
    loss: Number | None
    images: Count
    accuracy_before_finetuning: Share
    flops_ratio: Share
    candidates: Count
    best_candidate: Count | None
    epochs: _Epochs
    kept_epoch: _Epochs
    epoch_seconds: Amount
    threads: Count
    peak_memory_mb: Amount | None
    memory_meter: Name | None
    energy_joules: Amount | None
    energy_meter: Name | None
    bottleneck_channels: Count
    feature_size: Count
    primary_capsules: Count
    trunk_macs: Count
    head_macs: Count
    training_flops: Count


class HeadSummary(NetworkSummary, total=False):
    """Of the stages that put a head on a trunk."""

    frozen: Required[bool]


class ExportSummary(TypedDict):
    """Of `onnx`, and what stands in verification.json."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    path: Text
    bytes: Count
    opset: Count
    inline: bool
    inputs: _Shapes
    outputs: _Shapes
    batches: Annotated[list[_Batch], Field(max_length=100)]
    max_abs_difference: Amount
    top1_agreement: Share


class VariantSummary(TypedDict):
    """Of a network that was profiled."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    forward_macs: Count
    parameters: Count
    file_bytes: Count


class MeasurementSummary(TypedDict):
    """Of one network at one batch size, as `capsprune.runtime.profile` measures it."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    variant: Name
    provider: Name
    batch: _Batch
    latency_ms: Amount
    latency_ms_p25: Amount
    latency_ms_p75: Amount
    routing_share: Amount | None
    routing_kernel: NotRequired[Name | None]
    images_per_second: NotRequired[Amount | None]
    peak_memory_mb: NotRequired[Number | None]
    gpu_memory_mb: NotRequired[Number | None]
    energy_joules_per_image: NotRequired[Number | None]
    portable_latency_ms: NotRequired[Amount | None]
    portable_routing_share: NotRequired[Amount | None]


Measurements = Annotated[list[MeasurementSummary], Field(min_length=1, max_length=MAX_ENTRIES)]


class ProfileSummary(TypedDict):
    """Of `profile`."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    variants: Annotated[dict[Name, VariantSummary], Field(min_length=1, max_length=_MAX_VARIANTS)]
    measurements: Measurements


def _check_whole(profile: ProfileSummary) -> ProfileSummary:
    batches = {row["batch"] for row in profile["measurements"]}
    measured = {(row["variant"], row["batch"]) for row in profile["measurements"]}
    for variant in profile["variants"]:
        for batch in batches:
            if (variant, batch) not in measured:
                raise ValueError(f"it should have '{variant}' measured at batch {batch}")
    return profile


class DistortedSummary(TypedDict):
    """Accuracies under one distortion."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

    distortion: Name
    amount: Number
    unit: Name
    capsules: Share | None
    linear: NotRequired[Share | None]


class AnalysisSummary(TypedDict):
    """Of `analysis`."""

    __pydantic_config__ = _LATER_VERSIONS_TOO  # type: ignore[misc]

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
    robustness: Annotated[list[DistortedSummary], Field(max_length=_MAX_DISTORTED)]


_KINDS: dict[str, Any] = {
    "options": Asked,
    "baseline": NetworkSummary,
    "pruned": NetworkSummary,
    "caps": HeadSummary,
    "linear": HeadSummary,
    "onnx": ExportSummary,
    "profile": Annotated[ProfileSummary, AfterValidator(_check_whole)],
    "analysis": AnalysisSummary,
}


def check_stage(stage: str, options: dict[str, Any], summary: dict[str, Any]) -> None:
    """Check the options and the summary of a stage.

    Raises:
        pydantic.ValidationError: if a reader could not rely on it.
    """
    _adapter("options").validate_python(options)
    if stage in _KINDS:
        _adapter(stage).validate_python(summary)


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[name])
