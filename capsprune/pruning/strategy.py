"""A pruning strategy: for each dependency group, the fraction of its channels that is removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from capsprune.bounds import MAX_ENTRIES, ChannelCount, Name, what_is_wrong
from capsprune.errors import StrategyError, unknown_name
from capsprune.files import BadFileError, read_json
from capsprune.pruning.groups import Dependencies
from capsprune.pruning.names import CRITERIA


@dataclass(frozen=True)
class Strategy:
    """Fractions of channels removed, by group name."""

    #: The backbone that it is for.
    model: str
    #: The FLOPs ratio that it was made for: what remains.
    flops: float
    fractions: dict[str, float]
    #: Channels are kept in multiples of this.
    round_to: int = 1
    #: Which channels of a group go first, of `capsprune.pruning.names.CRITERIA`.
    criterion: str = "l1"
    #: The head of the whole network that it is for, its primary capsules included; None where it is
    #: for a backbone alone.
    head: str | None = None
    #: Which primary capsules go first, of `capsprune.pruning.names.CAPSULE_CRITERIA`; None where
    #: none go.
    capsule_criterion: str | None = None

    def array(self, dependencies: Dependencies) -> NDArray[np.float64]:
        """Return the fractions in the order of the groups, [G].

        Raises:
            StrategyError: if the strategy does not name exactly the groups of the network.
        """
        for name in self.fractions:
            if name not in dependencies.names:
                known = unknown_name("group", name, dependencies.names)
                what = "backbone" if self.head is None else "network"
                raise StrategyError(f"The strategy does not fit this {what}. {known}")
        for name in dependencies.names:
            if name not in self.fractions:
                raise StrategyError(
                    f"The strategy says nothing of group '{name}'; give its fraction, 0 to keep "
                    "all of it."
                )
        return np.array([self.fractions[name] for name in dependencies.names])

    def kept(self, dependencies: Dependencies) -> NDArray[np.int64]:
        """Count the units of channels kept in each group, [G].

        Raises:
            StrategyError: if the strategy does not name exactly the groups of the network.
        """
        return kept_channels(
            self.array(dependencies), dependencies.channels, self.round_to, dependencies.widths
        )

    @classmethod
    def keeping_all(
        cls, model: str, dependencies: Dependencies, head: str | None = None
    ) -> Strategy:
        """Return the strategy that removes nothing.

        Args:
            model: the backbone.
            dependencies: the groups.
            head: of the whole network that they are of, None for those of the backbone alone.
        """
        return cls(model, 1.0, dict.fromkeys(dependencies.names, 0.0), head=head)

    @classmethod
    def keeping(
        cls, kept: NDArray[np.int64], model: str, dependencies: Dependencies, flops: float
    ) -> Strategy:
        """Return the strategy that keeps given numbers of units.

        Args:
            kept: in each group, [G].
            model: the backbone.
            dependencies: its groups.
            flops: the FLOPs ratio that it leaves.
        """
        # Half a unit more than was removed, so that rounding down gives the same number again.
        fractions = {
            group.name: (group.channels - int(count) + 0.5) / group.channels
            if count < group.channels
            else 0.0
            for group, count in zip(dependencies.groups, kept, strict=True)
        }
        return cls(model, flops, fractions)

    def to_dict(self) -> dict[str, object]:
        """Return the strategy as it is written to JSON."""
        content: dict[str, object] = {
            "model": self.model,
            "flops": self.flops,
            "round_to": self.round_to,
            "criterion": self.criterion,
            "fractions_removed": self.fractions,
        }
        if self.head is not None:
            content["head"] = self.head
        if self.capsule_criterion is not None:
            content["capsule_criterion"] = self.capsule_criterion
        return content


def kept_channels(
    fractions: NDArray[np.float64],
    channels: NDArray[np.int64],
    round_to: int = 1,
    widths: NDArray[np.int64] | int = 1,
) -> NDArray[np.int64]:
    """Return the units kept in each group: all but `floor(fraction x units)`, at least one.

    Args:
        fractions: removed fractions, [..., G].
        channels: units of each group, [G]; one channel each, but for `widths`.
        round_to: keep the nearest multiple of this many channels, at least one; a group with fewer
            channels keeps all of them.
        widths: channels in a unit of each group, [G].

    Returns:
        Kept units, [..., G].
    """
    # So many units make the least common multiple of their width and what is rounded to.
    step = round_to // np.gcd(round_to, widths)
    kept = channels - np.floor(fractions * channels).astype(np.int64)
    kept = (kept + step // 2) // step * step
    return np.clip(kept, np.minimum(step, channels), channels)


def _known_criterion(name: str) -> str:
    if name not in CRITERIA:
        raise ValueError(f"it should be one of {', '.join(CRITERIA)}")
    return name


class _StrategyFile(BaseModel):
    """What stands in a strategy.json, as `Strategy.to_dict` writes it."""

    model_config = ConfigDict(strict=True)

    model: Name
    # A network of full rank, in two layers, may have more than the one that it was made from.
    flops: Annotated[float, Field(gt=0, le=100)]
    fractions_removed: Annotated[
        dict[Name, Annotated[float, Field(ge=0, lt=1)]], Field(max_length=MAX_ENTRIES)
    ]
    round_to: ChannelCount = 1
    criterion: Annotated[Name, AfterValidator(_known_criterion)] = "l1"
    head: Name | None = None
    capsule_criterion: Name | None = None


def read_strategy(path: Path, model: str | None, head: str | None = None) -> Strategy:
    """Read a strategy.

    Args:
        path: a JSON file.
        model: the backbone that it will be applied to; None for the one that it names.
        head: that of the whole network that it will be applied to; None for a backbone alone.

    Raises:
        StrategyError: if the file is missing, is no strategy, or is for another backbone or head.
    """
    try:
        content = _StrategyFile.model_validate(read_json(path))
    except FileNotFoundError:
        raise StrategyError(f"There is no strategy file {path}; check the path.") from None
    except BadFileError as error:
        raise StrategyError(f"{path} {error}; give a strategy.json.") from error
    except ValidationError as error:
        raise StrategyError(
            f"{path} is no strategy: {what_is_wrong(error)}. It needs 'model', 'flops' and "
            "'fractions_removed', a mapping from group name to fraction."
        ) from error
    if model is not None and content.model != model:
        raise StrategyError(
            f"{path} is a strategy for {content.model}, not for {model}; give one for {model}."
        )
    _check_head(path, content.head, head)
    return Strategy(
        model=content.model,
        flops=content.flops,
        round_to=content.round_to,
        criterion=content.criterion,
        fractions=content.fractions_removed,
        head=content.head,
        capsule_criterion=content.capsule_criterion,
    )


def _check_head(path: Path, made_for: str | None, head: str | None) -> None:
    """Check that a strategy is for what it will be applied to.

    Raises:
        StrategyError: if it is not.
    """
    if made_for == head:
        return
    if made_for is None:
        raise StrategyError(
            f"{path} is a strategy for a backbone alone; give it to 'prune', and here one that "
            "'prune-caps' wrote."
        )
    if head is None:
        raise StrategyError(
            f"{path} is a strategy for a whole network with the head {made_for}, not for a "
            "backbone; give it to 'prune-caps', and here one that 'prune' wrote."
        )
    raise StrategyError(
        f"{path} is a strategy for a network with the head {made_for}, not {head}; give one for "
        f"{head}."
    )
