"""What all kinds of PrimaryCaps have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from capsprune.backbones.trunk import FeatureMap
from capsprune.capsules.routing import squash
from capsprune.errors import ModelError

PrimaryCapsT = TypeVar("PrimaryCapsT", bound="PrimaryCaps")
#: Options of the layers as users write them.
_FLAGS = {"types": "--types", "rank": "--primary-rank", "capsules": "--capsules"}


class PrimaryCaps(nn.Module):
    """Turn a feature map into I primary capsules of D1 values: section 3.1 of the paper."""

    #: Its name in `capsprune.capsules.primary.names.PRIMARIES`.
    kind: ClassVar[str]
    #: Its options beside D1, of `types`, `rank` and `capsules`.
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, feature_size: int, capsules: int, d1: int) -> None:
        """Note the sizes.

        Args:
            feature_size: K, the height and width of the feature map.
            capsules: I.
            d1: D1, the values in a capsule.
        """
        super().__init__()
        self.feature_size = feature_size
        self.capsules = capsules
        self.d1 = d1

    @classmethod
    def make(
        cls: type[PrimaryCapsT],
        features: FeatureMap,
        d1: int,
        *,
        types: int | None = None,
        rank: int | None = None,
        capsules: int | None = None,
    ) -> PrimaryCapsT:
        """Make a new layer for a trunk.

        Args:
            features: what the trunk gives: S channels of K x K.
            d1: values in a capsule.
            types: kinds of capsules, where each position has one of each; None for the default.
            rank: channels between the two convolutions of a factored layer; None for the default.
            capsules: I, where it does not follow from the trunk.

        Raises:
            ModelError: if it does not fit the trunk, or has no such option.
        """
        given = {"types": types, "rank": rank, "capsules": capsules}
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in cls.options:
                raise ModelError(
                    f"PrimaryCaps of kind {cls.kind} has no {_FLAGS[name]}; leave it out, or give "
                    "another --primary."
                )
        return cls.fitting(features, d1, options)

    @classmethod
    @abstractmethod
    def fitting(
        cls: type[PrimaryCapsT], features: FeatureMap, d1: int, options: Mapping[str, int]
    ) -> PrimaryCapsT:
        """Make a new layer for a trunk, as `make` does.

        Args:
            features: what the trunk gives.
            d1: values in a capsule.
            options: those of `make` that were given, all of which the kind has.

        Raises:
            ModelError: if it does not fit the trunk.
        """

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """S: the channels of the feature map."""

    @abstractmethod
    def poses(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to capsules before squashing, [batch, I, D1]."""

    @property
    def own_capsules(self) -> int | None:
        """I, where it is not what S makes; None where it is."""
        return None if self.capsules == self.in_channels // self.d1 else self.capsules

    def stored(self) -> dict[str, int | None]:
        """Return the options with which `make` makes a layer like this, before it was pruned."""
        return {}

    def forward(self, features: Tensor) -> Tensor:
        """Map features [batch, S, K, K] to squashed poses [batch, I, D1]."""
        return squash(self.poses(features))


def count_capsules(channels: int, d1: int) -> int:
    """Return the capsules that so many channels make, `I = floor(S / D1)`.

    Raises:
        ModelError: if S < D1, so that there would be none.
    """
    if channels < d1:
        raise ModelError(
            f"The trunk has {channels} channels, which is less than the {d1} values of one "
            "primary capsule; prune less, or give a smaller --d1."
        )
    return channels // d1
