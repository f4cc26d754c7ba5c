"""The sizes that a pruned network is asked to have, as one value.

A new kind of size is one more field of `Target` and its entry in `_SIZES` here, which says all that
follows from it, and the option of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from capsprune.errors import StrategyError
from capsprune.pruning.cost import CostModel
from capsprune.pruning.drawing import with_counts
from capsprune.pruning.file_size import FileSize, format_bytes
from capsprune.pruning.limits import Count, Counted, FileLimit, Limit, RatioLimit
from capsprune.pruning.space import FLOPS_TOLERANCE, Reference, SearchSpace

#: What remains of the FLOPs where no size is asked for.
DEFAULT_FLOPS = 0.5
#: Largest removal fraction by FLOPs ratio, as EagleEye's published searches chose it.
_PUBLISHED_MAX_RATES = ((0.25, 0.8), (0.5, 0.7), (0.75, 0.4))
LARGEST_MAX_RATE = 0.95
#: A rank that the search chooses.
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Target:
    """The sizes asked for; None for those that are not."""

    #: Parts of the FLOPs and parameters that remain.
    flops: float | None = None
    params: float | None = None
    #: Primary capsules, I, that a pruned trunk will have.
    primary_caps: int | None = None
    #: Primary capsules of a capsule network that remain, or the part of them.
    capsules: float | None = None
    #: Rank of a factored PrimaryCaps; "auto" for one that the search chooses.
    primary_rank: int | Literal["auto"] | None = None
    #: Routing iterations.
    iterations: int | None = None
    #: Bytes of the exported file.
    file_size: int | None = None
    #: Milliseconds an image.
    latency: float | None = None
    #: Points of validation accuracy that the smallest network may lose.
    tolerance: float | None = None

    @classmethod
    def of(cls, options: object) -> Target:
        """Return the sizes that options ask for: their fields of the same names."""
        return cls(**{size.name: getattr(options, size.name, None) for size in fields(cls)})

    @property
    def given(self) -> dict[str, Any]:
        """The sizes that are asked for, by name."""
        sizes = {size.name: getattr(self, size.name) for size in fields(self)}
        return {name: value for name, value in sizes.items() if value is not None and value != AUTO}

    @property
    def removes_nothing(self) -> bool:
        """Whether it is the unpruned network itself that is asked for."""
        return self.flops == 1

    @property
    def is_computed(self) -> bool:
        """Whether a size is among those that follow from channel counts."""
        return any(_SIZES[name].computed for name in self.given)

    @property
    def is_smallest(self) -> bool:
        """Whether the smallest network within a tolerance is asked for."""
        return self.tolerance is not None

    def refuse_any(self, why: str, keep: str) -> None:
        """Check that no size is asked for beside an option that has its own.

        Args:
            why: what that option does.
            keep: its name, for the remedy.

        Raises:
            StrategyError: if one is.
        """
        if self.given:
            raise StrategyError(f"{why}; leave out {_flags(self.given)}, or {keep}.")

    def complete(self, default: Target | None = None) -> Target:
        """Return the target with what holds where nothing is asked for.

        Args:
            default: what does; None for half of the FLOPs.

        Raises:
            StrategyError: if a size cannot be, or two sizes exclude each other.
        """
        for name, value in self.given.items():
            if value != 1 or name != "flops":
                _SIZES[name].check(_hyphenated(name), value)
        if self.removes_nothing:
            replace(self, flops=None).refuse_any("--flops 1 removes nothing", "--flops")
        if self.is_smallest:
            replace(self, tolerance=None).refuse_any(
                "--tolerance asks for the smallest network, whatever its size", "--tolerance"
            )
        if self.given:
            return self
        default = default or Target(flops=DEFAULT_FLOPS)
        return replace(self, **default.given)

    def search_space(
        self,
        cost: CostModel,
        max_rate: float | None = None,
        round_to: int = 1,
        counted: Mapping[str, Counted] | None = None,
        *,
        kinds: Sequence[str] = (),
        reference: Reference | None = None,
        file_size: FileSize | None = None,
    ) -> SearchSpace:
        """Return the space of the strategies that have the sizes which follow from channel counts.

        Args:
            cost: of the unpruned network.
            max_rate: largest removal fraction of channels; None for one between EagleEye's
                published choices, or higher where those cannot reach the target.
            round_to: keep multiples of this many channels.
            counted: how what is counted follows from the units kept, by the name of the size; what
                has groups of its own kind follows from `kinds`.
            kinds: what each group is of (`ChannelGroup.kind`), [G]; () for channels in all of them.
            reference: costs that ratios are of; None for those of `cost` itself.
            file_size: of the unpruned network, where a file size is asked for.

        Raises:
            StrategyError: if a size or max_rate is out of range, or the target is out of reach.
        """
        whole = reference or Reference.of(cost)
        network = _Network(cost, counted or {}, tuple(kinds), whole, file_size)
        limits: list[Limit] = []
        counts: list[Count] = []
        for name, value in self.given.items():
            size, option = _SIZES[name], _hyphenated(name)
            size.check(option, value)
            limits += [limit] if (limit := size.limit(option, value, network)) else []
            counts += [count] if (count := size.count(option, value, network)) else []
        space = SearchSpace(
            cost,
            LARGEST_MAX_RATE,
            tuple(limits),
            tuple(counts),
            round_to,
            kinds=network.kinds,
            whole=self._whole(counts, network),
            given=reference,
        )
        if max_rate is None:
            space = _with_default_rate(space)
        elif 0 < max_rate < 1:
            space = replace(space, max_rate=max_rate)
        else:
            raise StrategyError(
                f"A largest removal fraction of {max_rate:g} is not between 0 and 1; give, for "
                "example, --max-rate 0.7."
            )
        _check_reach(space)
        return space

    def _whole(self, counts: list[Count], network: _Network) -> frozenset[int]:
        """Return the groups that nothing asked for reaches.

        Where only numbers of parts of the head are asked for, all channels stay. Iterations, and a
        rank that is left to the search, are free even there.
        """
        if not self.given or any(_SIZES[name].prunes_channels for name in self.given):
            return frozenset()
        free = {"iterations"} | ({"rank"} if self.primary_rank == AUTO else set())
        deciding = np.logical_or.reduce([count.deciding for count in counts])
        return frozenset(
            group
            for group, kind in enumerate(network.kinds)
            if kind not in free and not deciding[group]
        )


@dataclass(frozen=True)
class _Network:
    """What sizes are of: the arguments of `Target.search_space`, with what holds by default."""

    cost: CostModel
    counted: Mapping[str, Counted]
    kinds: tuple[str, ...]
    reference: Reference
    file_size: FileSize | None


class _Size:
    """One kind of size: its checks, its words, and what follows from it for the space.

    Options are given as users write them, without the hyphens before.
    """

    #: Whether it follows from channel counts.
    computed: ClassVar[bool] = True
    #: Whether all groups may be pruned for it, not only those that it counts.
    prunes_channels: bool = True

    def check(self, option: str, value: Any) -> None:
        """Check that a value can be at all.

        Raises:
            StrategyError: if it cannot.
        """

    def limit(self, option: str, value: Any, network: _Network) -> Limit | None:
        """Return the limit that follows from a value, if one does."""
        return None

    def count(self, option: str, value: Any, network: _Network) -> Count | None:
        """Return the number that follows from a value, if one does."""
        return None


@dataclass(frozen=True)
class _Ratio(_Size):
    """The part of a cost that remains."""

    what: str
    cost: Callable[[CostModel, NDArray[np.int64]], NDArray[np.int64]]
    reference: Callable[[Reference], int]

    def check(self, option: str, value: float) -> None:
        """Check the ratio."""
        if not 0 < value < 1:
            raise StrategyError(
                f"A ratio of {value:g} of the {self.what} is not between 0 and 1; give the "
                f"part that remains, such as --{option} 0.5."
            )

    def limit(self, option: str, value: float, network: _Network) -> Limit:
        """Limit the ratio."""
        whole = self.reference(network.reference)
        return RatioLimit(
            option, value, self.what, lambda kept: self.cost(network.cost, kept) / whole
        )


@dataclass(frozen=True)
class _FileBytes(_Size):
    """The bytes of the exported file."""

    def check(self, option: str, value: float) -> None:
        """Check the number."""
        if not value >= 1:
            raise StrategyError(
                f"A file cannot have {value:g} bytes; give its size, such as --{option} 4MB."
            )

    def limit(self, option: str, value: float, network: _Network) -> Limit:
        """Limit the bytes."""
        size = network.file_size
        if size is None:
            raise ValueError("A file size needs what the file of the unpruned network holds.")
        if value <= size.fixed:
            raise StrategyError(
                f"The graph of this network alone takes {format_bytes(size.fixed)} of its file, as "
                f"much as the {format_bytes(value)} asked for or more; give a higher --{option}."
            )
        return FileLimit(option, value, size, FLOPS_TOLERANCE)


@dataclass(frozen=True)
class _Exactly(_Size):
    """A number that the network has exactly."""

    what: str
    #: The kind of the groups whose units are counted; None where the network says what counts.
    kind: str | None = None
    prunes_channels: bool = False
    #: Whether numbers below 1 are parts.
    parts: bool = False
    #: How else there may be more of it, as options.
    remedy: str = ""

    def check(self, option: str, value: float) -> None:
        """Check the number."""
        if not (value >= 1 and value == int(value)) and not (self.parts and 0 < value < 1):
            what = "a whole number of at least 1" + (" or a part below 1" if self.parts else "")
            raise StrategyError(f"--{option} {value:g} is not {what}; give, for example, 1.")

    def count(self, option: str, value: float, network: _Network) -> Count:
        """Count it in the groups that decide it."""
        counted = network.counted.get(option.replace("-", "_"))
        if counted is None and self.kind in network.kinds:
            counted = Counted.in_groups(np.array(network.kinds) == self.kind)
        if counted is None:
            raise StrategyError(
                f"This network has no {self.what} that could go; leave out --{option}."
            )
        number = int(value)
        if value < 1:
            number = max(1, round(value * int(counted.number(network.cost.channels))))
        return Count(number, counted, option, self.what, self.remedy)


@dataclass(frozen=True)
class _Measured(_Size):
    """A time, which a stage measures candidate by candidate."""

    computed: ClassVar[bool] = False


@dataclass(frozen=True)
class _Tolerance(_Size):
    """No size but a way to search: for the smallest network that loses no more accuracy."""

    computed: ClassVar[bool] = False

    def check(self, option: str, value: float) -> None:
        """Check the points."""
        if not 0 <= value <= 100:
            raise StrategyError(
                f"A loss of {value:g} points of accuracy is not between 0 and 100; give, for "
                f"example, --{option} 0.5."
            )


_SIZES: dict[str, _Size] = {
    "flops": _Ratio("FLOPs", CostModel.macs, lambda whole: whole.macs),
    "params": _Ratio("parameters", CostModel.parameters, lambda whole: whole.parameters),
    "primary_caps": _Exactly("primary capsules", prunes_channels=True, remedy="--d1"),
    "capsules": _Exactly("primary capsules", "capsules", parts=True),
    "primary_rank": _Exactly("ranks of PrimaryCaps", "rank"),
    "iterations": _Exactly("routing iterations", "iterations"),
    "file_size": _FileBytes(),
    "latency": _Measured(),
    "tolerance": _Tolerance(),
}


def _hyphenated(name: str) -> str:
    return name.replace("_", "-")


def _flags(names: Mapping[str, Any]) -> str:
    flags = [f"--{_hyphenated(name)}" for name in names]
    return " and ".join([", ".join(flags[:-1]), flags[-1]] if len(flags) > 1 else flags)


def _with_default_rate(space: SearchSpace) -> SearchSpace:
    """Return the space at the rate of EagleEye's searches, or more where that is too little."""
    ratios, rates = zip(*_PUBLISHED_MAX_RATES, strict=True)
    unpruned = space.cost.channels
    tightest = min((limit.part(unpruned) for limit in space.limits), default=DEFAULT_FLOPS)
    rate = float(np.interp(tightest, (0.0, *ratios, 1.0), (LARGEST_MAX_RATE, *rates, 0.1)))
    # Where a network has layers that no group can prune, the rest must give more.
    while rate < LARGEST_MAX_RATE and not _has_room(replace(space, max_rate=rate)):
        rate = min(rate + 0.05, LARGEST_MAX_RATE)
    return replace(space, max_rate=rate)


def _has_room(space: SearchSpace) -> bool:
    """Tell whether the targets lie well within what a space reaches."""
    least = space.least()
    if any(limit.cost(least) > 0.9 * limit.most for limit in space.limits):
        return False
    return all(count.counted.number(least) <= count.number for count in space.counts)


def _check_reach(space: SearchSpace) -> None:
    """Raise StrategyError if no strategy of a space can lie on its target."""
    least, most = space.least(), space.kept(np.zeros(space.groups))
    having = ""
    if space.counts:
        least, most = _settled(space, least, most)
        having = f" with {' and '.join(count.words for count in space.counts)}"
    finer = ", or a lower --round-to" if space.round_to > 1 else ""
    for limit in space.limits:
        if limit.excess(least) > space.tolerance:
            raise StrategyError(
                f"No strategy{having} that removes at most {space.max_rate:g} of each group "
                f"leaves {limit.words}: the least is {limit.figure(float(limit.cost(least)))}; "
                f"give a higher --max-rate or --{limit.option}{finer}."
            )
    if not space.limits or space.excess(most) >= -space.tolerance:
        return
    can_remain = " and ".join(limit.say(float(limit.cost(most))) for limit in space.limits)
    lower = " or ".join(f"--{limit.option}" for limit in space.limits)
    if not space.counts:
        raise StrategyError(
            f"The unpruned network has {can_remain}, less than what is asked for; give a lower "
            f"{lower}."
        )
    higher = " or ".join(f"--{count.option}" for count in space.counts)
    raise StrategyError(
        f"W{having.strip()[1:]} not more than {can_remain} can remain; give a higher "
        f"{higher}, or a lower {lower}."
    )


def _settled(
    space: SearchSpace, least: NDArray[np.int64], most: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fewest and most units, [G] each, where the numbers asked for are settled.

    Raises:
        StrategyError: if no strategy has them.
    """
    for count in space.counts:
        number, counted, option = count.number, count.counted, f"--{count.option}"
        fewest, unpruned = int(counted.number(least)), int(counted.number(most))
        if number > unpruned:
            each = f" of {counted.divisor} values" if counted.divisor > 1 else ""
            lower = " or ".join([option, count.remedy] if count.remedy else [option])
            raise StrategyError(
                f"The unpruned network has {unpruned} {count.what}{each}, fewer than {number}; "
                f"give a lower {lower}."
            )
        if number < fewest:
            raise StrategyError(
                f"No strategy that removes at most {space.max_rate:g} of each group leaves "
                f"{count.words}: the least is {fewest}; give a higher --max-rate or {option}."
            )
    rows = with_counts(space, np.tile(space.max_rates, (8, 1)), np.random.default_rng(0))
    kept = space.kept(rows)
    for count in space.counts:
        if not count.met(kept).any():
            raise StrategyError(
                f"No channel counts in multiples of {space.round_to} give {count.words}; give "
                f"another --{count.option} or a lower --round-to."
            )
    # Counts are decided by groups of their own: each is settled by itself.
    settled = least.copy()
    for count in space.counts:
        row = kept[np.flatnonzero(count.met(kept))[0]]
        settled = np.where(count.deciding, row, settled)
    return settled, np.where(space.deciding, settled, most)
