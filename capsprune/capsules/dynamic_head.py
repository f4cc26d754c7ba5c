"""The paper's head: PrimaryCaps, and OutputCaps reached by dynamic routing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator
from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.bounds import CapsuleSize, ChannelCount, ImageSize, IterationCount, Name
from capsprune.capsules.activity import CapsuleActivity
from capsprune.capsules.head import ROUTING, Head, HeadConfig, HeadCosts
from capsprune.capsules.loss import margin_loss
from capsprune.capsules.network import CapsuleNetwork, CapsuleOutput
from capsprune.capsules.onnx_op import OnnxOperator
from capsprune.capsules.primary.names import DENSE, PRIMARIES
from capsprune.capsules.routing_trace import RoutingTrace
from capsprune.errors import ModelError, unknown_name
from capsprune.training.objective import Objective

#: The part that gives the votes, as the network names its layer.
OUTPUT_CAPS = "output_caps"


def _known_primary(kind: str) -> str:
    if kind not in PRIMARIES:
        raise ValueError(unknown_name("kind of PrimaryCaps", kind, PRIMARIES))
    return kind


class DynamicConfig(HeadConfig):
    """Sizes of the capsules, and how often they are routed."""

    #: K: height and width of the feature map.
    feature_size: ImageSize
    #: Values in a primary capsule, and in an output capsule.
    d1: CapsuleSize = 8
    d2: CapsuleSize = 16
    iterations: IterationCount = 3
    #: Kind of PrimaryCaps; its types at each position and its rank, where it has any; and its
    #: capsules, where they do not follow from the trunk.
    primary: Annotated[Name, AfterValidator(_known_primary)] = DENSE
    types: ChannelCount | None = None
    rank: ChannelCount | None = None
    capsules: ChannelCount | None = None


class CapsuleTrace:
    """Which primary capsules are active, and what each routing iteration comes to."""

    def __init__(self, network: CapsuleNetwork) -> None:
        """Begin without images."""
        output = network.output_caps
        self._primary_caps = network.primary_caps
        self._activity = CapsuleActivity()
        self._routing = RoutingTrace(output.weight, output.bias, output.iterations, output.epsilon)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Route a batch."""
        u: Tensor = self._primary_caps(features)
        self._activity.update(u)
        self._routing.update(u, labels)

    def summary(self) -> dict[str, Any]:
        """Return what the summary of `analyse` says of primary capsules and routing."""
        activity, routing = self._activity, self._routing
        return {
            "coupling_entropy": routing.coupling_entropy,
            "agreement_true": routing.agreement_true,
            "agreement_other": routing.agreement_other,
            "accuracy_by_iteration": routing.accuracy,
            "primary_length": activity.mean_length,
            "never_active": activity.dead,
            "never_active_share": activity.dead / activity.capsules,
            "primary_capsules": activity.capsules,
        }


# Functions of a module, not lambdas: processes that try candidates unpickle them.
def _loss(outputs: CapsuleOutput, labels: Tensor) -> Tensor:
    return margin_loss(outputs.class_probabilities, labels)


def _scores(outputs: CapsuleOutput) -> Tensor:
    return outputs.class_probabilities


class DynamicHead(Head):
    """Capsules by dynamic routing, trained by the margin loss of their lengths."""

    config = DynamicConfig
    objective = Objective(loss=_loss, scores=_scores)
    outputs = ("poses",)
    renamed: Mapping[str, str] = {"primary_rank": "rank"}

    def configure(
        self, kind: str, features: FeatureMap, options: Mapping[str, Any]
    ) -> DynamicConfig:
        """Return the config of a new head, which is for a feature map of one size."""
        config = super().configure(kind, features, {**options, "feature_size": features.size})
        assert isinstance(config, DynamicConfig)
        return config

    def build(
        self, trunk: nn.Module, features: FeatureMap, classes: int, config: DynamicConfig
    ) -> CapsuleNetwork:
        """Put capsules on a trunk.

        Raises:
            ModelError: if the config is for a feature map of another size, or S < D1.
        """
        if config.feature_size != features.size:
            raise ModelError(
                f"The head is for a feature map of {config.feature_size} x {config.feature_size}, "
                f"and that of the trunk is {features.size} x {features.size}."
            )
        return CapsuleNetwork(
            trunk,
            channels=features.channels,
            classes=classes,
            **config.model_dump(exclude={"kind"}),
        )

    def describe(self, network: CapsuleNetwork) -> DynamicConfig:
        """Read the config off the layers."""
        return DynamicConfig(
            kind=network.kind,
            feature_size=network.primary_caps.feature_size,
            d1=network.primary_caps.d1,
            d2=network.output_caps.weight.shape[3],
            iterations=network.output_caps.iterations,
            primary=network.primary_caps.kind,
            **network.primary_caps.stored(),
        )

    def costs(self, network: CapsuleNetwork, layer_macs: Mapping[str, int]) -> HeadCosts:
        """Count what the layers cost, the votes of OutputCaps apart from their routing."""
        counted = super().costs(network, layer_macs)
        votes = network.output_caps.weight.numel()
        part_macs = dict(counted.part_macs)
        part_macs[ROUTING] = part_macs[OUTPUT_CAPS] - votes
        part_macs[OUTPUT_CAPS] = votes
        return replace(counted, part_macs=part_macs)

    def part_of(self, name: str) -> str:
        """Return PrimaryCaps or OutputCaps."""
        return name.partition(".")[0]

    def sizes(self, network: CapsuleNetwork) -> dict[str, int]:
        """Return S, K, I, the routing iterations, and the rank or the types where there are any."""
        primary = network.primary_caps
        options = primary.stored()
        named = {"primary_rank": options.get("rank"), "primary_types": options.get("types")}
        return {
            "bottleneck_channels": primary.in_channels,
            "feature_size": primary.feature_size,
            "primary_capsules": network.output_caps.weight.shape[1],
            "routing_iterations": network.output_caps.iterations,
            **{name: size for name, size in named.items() if size is not None},
        }

    def exported(self, outputs: CapsuleOutput) -> tuple[Tensor, ...]:
        """Return lengths and poses as they are."""
        return tuple(outputs)

    def operators(self) -> tuple[OnnxOperator, ...]:
        """Return the routing."""
        from capsprune.capsules import routing_op  # which takes onnx to import

        return (routing_op.ROUTING,)

    def trace(self, network: CapsuleNetwork) -> CapsuleTrace:
        """Return what looks into primary capsules and routing."""
        return CapsuleTrace(network)

    def details(self, config: DynamicConfig) -> dict[str, Any]:
        """Return the kind of PrimaryCaps."""
        return {"primary": config.primary}

    def words(self, network: CapsuleNetwork, features: FeatureMap) -> str:
        """Say how many capsules there are."""
        return (
            f"{features.channels} channels make {network.primary_caps.capsules} primary capsules, "
            f"routed to {len(network.output_caps.weight)} output capsules"
        )


DYNAMIC_HEAD = DynamicHead()
