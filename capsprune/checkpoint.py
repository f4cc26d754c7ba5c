"""Checkpoints: a module of any pruned shape, as weights and a description, without pickle.

A checkpoint is a directory of `model.safetensors`, `architecture.json` and `metrics.jsonl`.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.registry import build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.backbones.weights import with_versions
from capsprune.bounds import (
    MAX_CLASSES,
    MAX_ENTRIES,
    ChannelCount,
    ImageSize,
    Name,
    Number,
    Text,
    check_plain,
    cut,
    what_is_wrong,
)
from capsprune.capsules.head import HeadConfig, head_of
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.data.preprocessing import COLOURS, Interpolation, Preprocessing
from capsprune.errors import CapspruneError, CheckpointError, listed, unknown_name
from capsprune.files import dump_json, make_folder, move, read_json, scratch
from capsprune.pruning.channels import layer_channels, resize_layers
from capsprune.version import __version__

if TYPE_CHECKING:
    from capsprune.data.sources import DataSplits

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
METRICS = "metrics.jsonl"

#: What the names of a trunk's layers begin with in a network with a head.
_TRUNK = "trunk."
#: Tag of the dynamic head in older files.
_CAPSULES = "capsules"


#: What a colour channel is divided by.
Deviation = Annotated[Number, Field(gt=0)]


class DataDescription(BaseModel):
    """What a network expects to see."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    class_names: Annotated[tuple[Name, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    #: Pixels a side.
    image_size: ImageSize
    #: One value for each colour channel: of three, or of one where it takes grey images.
    mean: Annotated[tuple[Number, ...], Field(max_length=COLOURS)]
    std: Annotated[tuple[Deviation, ...], Field(max_length=COLOURS)]
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _check_channels(self) -> DataDescription:
        assert self.preprocessing  # which raises
        return self

    @classmethod
    def of(cls, splits: DataSplits, preprocessing: Preprocessing) -> DataDescription:
        """Describe a data set as it is shown to a network.

        Args:
            splits: the data set.
            preprocessing: what becomes of its images.
        """
        return cls(
            name=splits.name, class_names=splits.class_names, **dataclasses.asdict(preprocessing)
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of an image before the network sees it."""
        return Preprocessing(self.image_size, self.mean, self.std, self.interpolation)


def _read_head(head: Any) -> Any:
    """Read a head's config by its kind; capsule heads had another tag once, and before it none.

    Raises:
        ValueError: if there is no such head.
    """
    if head is None or isinstance(head, HeadConfig):
        return head
    if not isinstance(head, Mapping):
        raise ValueError("it should be a head's kind and sizes")
    kind = head.get("kind", _CAPSULES)
    if not isinstance(kind, str):
        raise ValueError("its kind should be a name")
    kind = DYNAMIC if kind == _CAPSULES else kind
    if kind not in HEADS:
        raise ValueError(unknown_name("head", kind, HEADS))
    return HEADS[kind].config.model_validate({**head, "kind": kind})


#: Of any kind that is in the table.
StoredHead = Annotated[SerializeAsAny[HeadConfig], BeforeValidator(_read_head)]


#: Channel counts by layer.
_Channels = Annotated[
    dict[Name, dict[Annotated[str, Field(pattern="^(in|out)$")], ChannelCount]],
    Field(max_length=MAX_ENTRIES),
]


@dataclass(frozen=True)
class Blueprint:
    """What a network was made from: an unpruned backbone, and what it expects to see."""

    #: Name of the backbone.
    model: str
    #: Arguments of its factory beside the number of classes.
    arguments: Mapping[str, int]
    data: DataDescription

    def build(self) -> nn.Module:
        """Build the backbone, unpruned and untrained.

        Raises:
            ModelError: if there is no such backbone, or it does not take the arguments.
        """
        return build_backbone(self.model, len(self.data.class_names), **self.arguments)


class Architecture(BaseModel):
    """Enough to rebuild a network without its original class or any pickle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    id: Name
    #: The id of the checkpoint that this one was made from.
    parent: Name | None
    capsprune: Name
    model: Name
    #: Arguments of the backbone's factory beside the number of classes.
    arguments: dict[Name, int]
    data: DataDescription
    #: Channel counts by layer: of the backbone, or of the trunk where there is a head.
    channels: _Channels
    #: Channel counts of the head's layers, by their names in the network; None without a head, and
    #: in older checkpoints, whose heads follow from their trunks.
    head_channels: _Channels | None = None
    #: What was put in place of the backbone's own pooling and classifier.
    head: StoredHead | None
    #: Digest of the split by which it was trained, which lies beside it; None where it is not
    #: known, as in older checkpoints.
    split: str | None = None
    #: What was measured when it was made.
    metrics: dict[str, Any]

    @property
    def blueprint(self) -> Blueprint:
        """What the network was made from."""
        return Blueprint(self.model, self.arguments, self.data)


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is known of it."""

    network: nn.Module
    architecture: Architecture

    @property
    def trunk(self) -> nn.Module:
        """The network without pooling and classifier, or without its head."""
        if isinstance(self.network, HeadedNetwork):
            return self.network.trunk
        return trunk_of(self.architecture.model, self.network)


def describe(
    network: nn.Module, blueprint: Blueprint, *, parent: str | None, metrics: Mapping[str, Any]
) -> Architecture:
    """Describe a network so that it can be rebuilt.

    Args:
        network: a backbone, or a network with a head, of any pruned shape.
        blueprint: what it was made from.
        parent: id of the checkpoint that it was made from.
        metrics: what was measured.
    """
    trunk, head_channels = network, None
    head = head_of(network).describe(network)
    if isinstance(network, HeadedNetwork):
        trunk, head_channels = network.trunk, _head_channels(network)
    return Architecture(
        id=uuid.uuid4().hex,
        parent=parent,
        capsprune=__version__,
        model=blueprint.model,
        arguments=dict(blueprint.arguments),
        data=blueprint.data,
        channels=layer_channels(trunk),
        head_channels=head_channels,
        head=head,
        metrics=dict(metrics),
    )


def _head_channels(network: HeadedNetwork) -> dict[str, dict[str, int]]:
    """Return the channel counts of a head's layers, by their names in the network."""
    return {
        name: counts
        for name, counts in layer_channels(network).items()
        if not name.startswith(_TRUNK)
    }


def save_checkpoint(
    directory: Path,
    network: nn.Module,
    architecture: Architecture,
    history: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write a checkpoint beside its final name and rename it, so that a reader sees all or nothing.

    Args:
        directory: must not exist yet.
        network: what to save.
        architecture: from `describe`.
        history: rows of `metrics.jsonl`, one an epoch.

    Raises:
        OSError: if it cannot be written; nothing is left under the final name.
    """
    make_folder(directory.parent)
    with scratch(directory.parent, directory.name) as partial:
        state = {
            key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
        }
        (partial / WEIGHTS).write_bytes(save(state))
        described = architecture.model_dump_json(indent=1) + "\n"
        (partial / ARCHITECTURE).write_text(described, encoding="utf-8")
        rows = "".join(dump_json(dict(row)) + "\n" for row in history)
        (partial / METRICS).write_text(rows, encoding="utf-8")
        move(partial, directory)


def read_architecture(directory: Path) -> Architecture:
    """Read the description of a checkpoint.

    Raises:
        CheckpointError: if there is no checkpoint, or it is not one of capsprune's.
    """
    if not directory.exists():
        raise CheckpointError(f"There is no checkpoint {directory}; check the path.")
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is a file, where a checkpoint is a directory of {WEIGHTS} and "
            f"{ARCHITECTURE}; give the directory."
        )
    try:
        return Architecture.model_validate(check_plain(read_json(directory / ARCHITECTURE)))
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} has no {ARCHITECTURE}, so it is no checkpoint of capsprune; give one "
            "that train, prune or attach-caps left."
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{directory / ARCHITECTURE} is damaged or foreign ({what_is_wrong(error)}); make the "
            "checkpoint anew."
        ) from error


def verify_checkpoint(directory: Path) -> None:
    """Check that a checkpoint is whole, without building its network.

    Raises:
        CheckpointError: if its description or its weights are missing or truncated.
    """
    read_architecture(directory)
    with _readable(directory / WEIGHTS), safe_open(directory / WEIGHTS, framework="pt"):
        pass


@contextmanager
def _readable(weights: Path) -> Iterator[None]:
    """Say of a file of weights that cannot be read what is wrong with it."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(
            f"{weights.parent} has no {weights.name}; make the checkpoint anew."
        ) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{weights} is truncated or is no safetensors file ({error}); make the checkpoint anew."
        ) from error


def load_checkpoint(directory: Path) -> Checkpoint:
    """Rebuild a network of any pruned shape, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint is missing, truncated, foreign, or inconsistent.
    """
    architecture = read_architecture(directory)
    with _readable(directory / WEIGHTS):
        state = load_file(directory / WEIGHTS)
    try:
        network = _build(architecture)
    # A description that was tampered with fails wherever it does not fit.
    except (CapspruneError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory / ARCHITECTURE} describes no network of capsprune "
            f"({cut(str(error).rstrip('.'), 300)}); make the "
            "checkpoint anew."
        ) from error
    state = _as_built(state, network, directory / WEIGHTS)
    try:
        network.load_state_dict(with_versions(network, state), assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{directory / WEIGHTS} does not fit its {ARCHITECTURE} ({cut(first)}); make the "
            "checkpoint anew."
        ) from error
    return Checkpoint(network.eval(), architecture)


@torch.no_grad()
def _build(architecture: Architecture) -> nn.Module:
    """Build a network without values: the file's tensors will take their places.

    It is shown an image without values: what does not fit fails here.

    Raises:
        ModelError, RuntimeError: if layers do not fit each other, or nothing is left of images of
            this size.
    """
    size = architecture.data.image_size
    with torch.device("meta"):
        network = architecture.blueprint.build()
        if architecture.head is None:
            resize_layers(network, architecture.channels)
        else:
            trunk = trunk_of(architecture.model, network)
            resize_layers(trunk, architecture.channels)
            headed = build_headed(trunk, architecture.head, architecture.data)
            if architecture.head_channels is not None:
                in_trunk = {_TRUNK + name: counts for name, counts in architecture.channels.items()}
                resize_layers(headed, in_trunk | architecture.head_channels)
            network = headed
        network.eval()(torch.empty(1, architecture.data.preprocessing.channels, size, size))
        return network


def build_headed(trunk: nn.Module, head: HeadConfig, data: DataDescription) -> HeadedNetwork:
    """Put a new head on a trunk.

    Raises:
        ModelError: if it does not fit the trunk, or nothing is left of images of this size.
    """
    features = trunk_output(trunk, data.image_size)
    return HEADS[head.kind].build(trunk, features, len(data.class_names), head)


def _as_built(state: Mapping[str, Tensor], network: nn.Module, source: Path) -> dict[str, Tensor]:
    """Give the tensors the types that the network has, where no value is lost by it.

    Raises:
        CheckpointError: if one holds numbers of another kind, or such as are not finite.
    """
    due = {key: value.dtype for key, value in network.state_dict().items()}
    found: dict[str, Tensor] = {}
    endless: list[str] = []
    for key, value in state.items():
        dtype = due.get(key, value.dtype)
        if value.is_floating_point() != dtype.is_floating_point:
            raise CheckpointError(
                f"{source} has '{cut(key)}' as {_kind(value.dtype)}, where {_kind(dtype)} is due; "
                "make the checkpoint anew."
            )
        found[key] = value.to(dtype)
        if dtype.is_floating_point and not torch.isfinite(found[key]).all():
            endless.append(cut(key))
    if endless:
        raise CheckpointError(
            f"{source} has numbers that are not finite (NaN or infinity) in "
            f"{listed(endless, 3)}; make the checkpoint anew."
        )
    return found


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
