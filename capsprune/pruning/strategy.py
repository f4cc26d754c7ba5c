"""A pruning strategy: for each dependency group, the fraction of its channels that is removed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError, unknown_name
from capsprune.pruning.groups import Dependencies


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
    #: Which channels of a group go first, of `capsprune.pruning.criteria.CRITERIA`.
    criterion: str = "l1"

    def array(self, dependencies: Dependencies) -> NDArray[np.float64]:
        """Give the fractions in the order of the groups, [G].

        Raises:
            StrategyError: if the strategy does not name exactly the groups of the network.
        """
        for name in self.fractions:
            if name not in dependencies.names:
                known = unknown_name("group", name, dependencies.names)
                raise StrategyError(f"The strategy does not fit this backbone. {known}")
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
    def keeping_all(cls, model: str, dependencies: Dependencies) -> Strategy:
        """Give the strategy that removes nothing.

        Args:
            model: the backbone.
            dependencies: its groups.
        """
        return cls(model, 1.0, dict.fromkeys(dependencies.names, 0.0))

    def to_dict(self) -> dict[str, object]:
        """Give the strategy as it is written to JSON."""
        return {
            "model": self.model,
            "flops": self.flops,
            "round_to": self.round_to,
            "criterion": self.criterion,
            "fractions_removed": self.fractions,
        }


def kept_channels(
    fractions: NDArray[np.float64],
    channels: NDArray[np.int64],
    round_to: int = 1,
    widths: NDArray[np.int64] | int = 1,
) -> NDArray[np.int64]:
    """Count the units kept in each group: all but `floor(fraction x units)`, at least one.

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


def read_strategy(path: Path, model: str) -> Strategy:
    """Read a strategy.

    Args:
        path: a JSON file.
        model: the backbone that it will be applied to.

    Raises:
        StrategyError: if the file is missing, is no strategy, or is for another backbone.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StrategyError(f"There is no strategy file {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise StrategyError(f"{path} is no JSON file ({error}); give a strategy.json.") from error
    fractions = content.get("fractions_removed") if isinstance(content, dict) else None
    if (
        not isinstance(fractions, dict)
        or not isinstance(content.get("model"), str)
        or not isinstance(content.get("flops"), (int, float))
    ):
        raise StrategyError(
            f"{path} is no strategy: it needs 'model', 'flops' and 'fractions_removed', a mapping "
            "from group name to fraction."
        )
    if content["model"] != model:
        raise StrategyError(
            f"{path} is a strategy for {content['model']}, not for {model}; give one for {model}."
        )
    for name, value in fractions.items():
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise StrategyError(
                f"{path} removes {value!r} of group '{name}'; give a fraction from 0 up to, "
                "but not including, 1."
            )
    round_to = content.get("round_to", 1)
    if not isinstance(round_to, int) or round_to < 1:
        raise StrategyError(f"{path} rounds to {round_to!r} channels; give 1 or more.")
    criterion = content.get("criterion", "l1")
    if not isinstance(criterion, str):
        raise StrategyError(f"{path} has the criterion {criterion!r}; give a name, such as l1.")
    return Strategy(
        model=model,
        flops=float(content["flops"]),
        round_to=round_to,
        criterion=criterion,
        fractions={name: float(value) for name, value in fractions.items()},
    )
