"""What the tool needs to know of a head, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.trunk import FeatureMap
from capsprune.bounds import Name
from capsprune.capsules.heads import HEADS
from capsprune.capsules.onnx_op import OnnxOperator
from capsprune.errors import ModelError
from capsprune.training.objective import CROSS_ENTROPY, Objective


class HeadConfig(BaseModel):
    """What a checkpoint stores of a head: the sizes that do not follow from the trunk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Name of the head in `HEADS`.
    kind: Name


#: The part of every network with a head that is not the head's.
TRUNK = "trunk"
#: The part that the operators of a head are, beside its layers.
ROUTING = "routing"


@dataclass(frozen=True)
class HeadCosts:
    """What a head costs beside the trunk, for one image."""

    #: Multiply-accumulates by part of the head, routing included.
    part_macs: Mapping[str, int]
    #: Those of them that the paper counts in a training step: of convolutions alone.
    convolution_macs: int
    #: Sizes that a stage's summary has too, by name.
    sizes: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(self.part_macs.values())


class Trace(Protocol):
    """Looks into a head while it is shown images."""

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch.

        Args:
            features: of the trunk, [batch, S, K, K].
            labels: int64 [batch], the true classes.
        """

    def summary(self) -> dict[str, Any]:
        """Return what the summary of `analyse` says of the head."""


class Head:
    """One kind of head; what a subclass leaves as it is here suits layers that give logits.

    `HEADS` has one instance of each kind. It has no state: sizes are in its config, and weights in
    the network that it builds.
    """

    #: What a checkpoint stores of it. Fields that are options of a command have a default.
    config: type[HeadConfig] = HeadConfig
    #: What its network is trained for, and how class scores are read off its outputs.
    objective: Objective = CROSS_ENTROPY
    #: Fields of the config that options call otherwise, by the options.
    renamed: Mapping[str, str] = {}
    #: Names of the outputs that an exported file has behind `class_probabilities`.
    outputs: tuple[str, ...] = ()

    def resolve(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with the head's defaults in place of those that were left open.

        Args:
            kind: the head's name.
            options: what a user asked for; None leaves one open.

        Returns:
            The same options; None stays for those that the head does not have.

        Raises:
            ModelError: if one was given that the head does not have.
        """
        fields = self.config.model_fields
        named = {name: self.renamed.get(name, name) for name in options}
        for name, value in options.items():
            if value is not None and named[name] not in fields:
                raise ModelError(
                    f"Head '{kind}' has no --{name.replace('_', '-')}; leave it out, or give "
                    "another --head."
                )
        return {
            name: fields[named[name]].default if value is None and named[name] in fields else value
            for name, value in options.items()
        }

    def configure(self, kind: str, features: FeatureMap, options: Mapping[str, Any]) -> HeadConfig:
        """Return the config of a new head.

        Args:
            kind: its name.
            features: what the trunk gives.
            options: as `resolve` takes them.

        Raises:
            ModelError: if one was given that the head does not have.
        """
        given = {k: v for k, v in self.resolve(kind, options).items() if v is not None}
        return self.config(kind=kind, **{self.renamed.get(k, k): v for k, v in given.items()})

    def build(
        self, trunk: nn.Module, features: FeatureMap, classes: int, config: Any
    ) -> HeadedNetwork:
        """Put a new head on a trunk.

        Args:
            trunk: maps images [batch, C, H, W] to features [batch, S, K, K].
            features: what it gives.
            classes: J.
            config: from `configure`, or of a checkpoint.

        Raises:
            ModelError: if the config does not fit the trunk.
        """
        raise NotImplementedError

    def describe(self, network: Any) -> HeadConfig | None:
        """Read the config back off a network that `build` made; None where there is no head."""
        return self.config(kind=network.kind)

    def costs(self, network: Any, layer_macs: Mapping[str, int]) -> HeadCosts:
        """Count what a head costs.

        Args:
            network: with the head.
            layer_macs: multiply-accumulates of the layers that are not the trunk's, counted in a
                forward pass, by their names in the network. Layers that are neither convolutions
                nor linear are counted by their adapter (`capsprune.pruning.layers.adapts`).
        """
        part_macs: dict[str, int] = {}
        for name, macs in layer_macs.items():
            part = self.part_of(name)
            part_macs[part] = part_macs.get(part, 0) + macs
        return HeadCosts(
            part_macs=part_macs,
            convolution_macs=sum(
                macs
                for name, macs in layer_macs.items()
                if isinstance(network.get_submodule(name), nn.Conv2d)
            ),
            sizes=self.sizes(network),
        )

    def part_of(self, name: str) -> str:
        """Return the part of the head that something belongs to: costs are told by part.

        Args:
            name: of a layer, a parameter or a buffer of the network, which is not the trunk's.
        """
        return "head"

    def sizes(self, network: Any) -> dict[str, int]:
        """Return sizes of the head that a stage's summary has too, by name."""
        return {}

    def exported(self, outputs: Any) -> tuple[Tensor, ...]:
        """Return the outputs of an exported file: `class_probabilities` [batch, J], and `outputs`.

        Args:
            outputs: of the network.
        """
        return (torch.softmax(outputs, dim=-1),)

    def operators(self) -> tuple[OnnxOperator, ...]:
        """Return the operators that its network calls, beside PyTorch's own."""
        return ()

    def trace(self, network: Any) -> Trace | None:
        """Return what looks into the head for `analyse`; None where there is nothing to see.

        Args:
            network: with the head, in evaluation mode.
        """
        return None

    def details(self, config: Any) -> dict[str, Any]:
        """Return what summaries of networks say of the config."""
        return {}

    def words(self, network: Any, features: FeatureMap) -> str:
        """Say in half a sentence what was put on a trunk."""
        return f"A head on {features.channels} channels of {features.size} x {features.size}"


class OwnClassifier(Head):
    """Of a backbone whose own classifier stands where a head would be."""

    def describe(self, network: Any) -> None:
        """Return None: there is no head to store."""
        return

    def costs(self, network: Any, layer_macs: Mapping[str, int]) -> HeadCosts:
        """Count the classifier, which the paper does not, whatever layers it is made of."""
        return replace(super().costs(network, layer_macs), convolution_macs=0)

    def part_of(self, name: str) -> str:
        """Return the classifier."""
        return "classifier"


OWN_CLASSIFIER = OwnClassifier()


def head_of(network: nn.Module) -> Head:
    """Return the head that a network has."""
    return HEADS[network.kind] if isinstance(network, HeadedNetwork) else OWN_CLASSIFIER


def onnx_operators() -> dict[str, OnnxOperator]:
    """Return the operators of all heads, by their names in ONNX files."""
    return {op.op_type: op for name in HEADS for op in HEADS[name].operators()}
