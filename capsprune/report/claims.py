"""Which of the paper's claims hold on what was measured, in words.

A claim is a direction: some figure is higher, or lower, in one configuration than in another. It is
judged by comparisons, one for each pruned level (and trunk) that both configurations have. The two
figures of a comparison are paired by seed, and it is

- "holds" or "does not hold" where the mean of the paired differences is larger than its error;
- "undecided" where it is not, or where there is no difference.

The error is the standard error of the mean of the paired differences over the seeds. For accuracies
it is at least the binomial standard error of their difference on so many test images, which the
seeds share: with one seed it is all there is. For other figures that are measured, one seed leaves
the error unknown, and a difference below 5 % of the figure counts as undecided. Sizes are exact:
with one seed their error is 0, and the same size twice means that the claim does not hold.

A claim holds where all its comparisons do, in part where some do, and not at all where some do not
and none does. It is undecided where all its comparisons are, and cannot be told where there is
nothing to compare.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from capsprune.report.results import Cell, Head, Results, Row, Trunk

Verdict = Literal["holds", "holds in part", "does not hold", "undecided", "cannot be told"]

RULE = (
    "Differences are paired by seed. A verdict needs a difference above its error: the standard "
    "error over the seeds and, for accuracies, at least the binomial one of the test images. With "
    "one seed, a measured figure other than accuracy has to differ by 5 %. A claim holds where "
    "every comparison is for it, in part where some are, and does not hold where some are against "
    "it and none is for it."
)

#: Part of a measured figure that a difference has to reach where one seed gives no spread.
_ONE_SEED = 0.05


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and what these results say of it."""

    statement: str
    verdict: Verdict
    #: The figures that the verdict rests on, in a sentence or two.
    evidence: str

    def to_dict(self) -> dict[str, str]:
        """The claim as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class _Figure:
    """A figure that claims are about."""

    value: str
    #: To be in `unit`.
    scale: float
    digits: int
    unit: str
    #: A size that is counted rather than measured.
    exact: bool = False


_ACCURACY = _Figure("accuracy", 100, 1, "%")
_CAPSULES = _Figure("primary_capsules", 1, 0, "capsules", exact=True)
_MEMORY = _Figure("peak_memory_mb", 1, 0, "MB")
_EPOCH = _Figure("epoch_seconds", 1, 2, "s")
_ENTROPY = _Figure("bottleneck_entropy", 1, 3, "bits")
_LOSS_TO_DISTORTION = _Figure("lost", 100, 1, "points")


@dataclass(frozen=True)
class _Comparison:
    """A figure in two configurations, over the seeds that both have."""

    what: str
    verdict: Verdict
    #: The two figures and their difference, in words.
    words: str


def claims(results: Results) -> list[Claim]:
    """Judge what the paper says, and what it leaves open, on each data set and backbone.

    The rule is at the head of this module, and in `RULE` for readers.
    """
    found = []
    groups: dict[str, list[Row]] = {}
    for row in results.rows:
        groups.setdefault(results.where(row), []).append(row)
    for where, rows in groups.items():
        for claim in _claims_on(_Rows(rows), results.analyses):
            statement = claim.statement[0].upper() + claim.statement[1:]
            if len(groups) > 1:
                statement = f"{where}: {claim.statement}"
            found.append(replace(claim, statement=statement))
    return found


class _Rows:
    """The rows of one data set, backbone and source."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {(row.trunk, row.pruned, row.head): row for row in rows}

    def get(self, trunk: Trunk, pruned: int, head: Head = "capsules") -> Row | None:
        return self._rows.get((trunk, pruned, head))

    def levels(self, trunk: Trunk, head: Head = "capsules") -> list[int]:
        """Pruned levels, the least first."""
        return sorted(p for t, p, h in self._rows if (t, h) == (trunk, head))

    @property
    def trunks(self) -> list[Trunk]:
        """Kinds of trunk that capsule rows have, the finetuned ones first."""
        kinds: tuple[Trunk, ...] = ("finetuned", "frozen")
        return [trunk for trunk in kinds if self.levels(trunk)]


def _claims_on(rows: _Rows, analyses: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    return [
        _judge(
            "with a finetuned trunk the capsule network is more accurate than with a frozen one.",
            _finetuned_above_frozen(rows),
            "It takes rows of both kinds of trunk at the same pruned level",
        ),
        _judge(
            "finetuned, with 25 to 50 % of the FLOPs pruned it is not less accurate than unpruned.",
            _against_unpruned(rows, _ACCURACY, 1, ["finetuned"], range(20, 56)),
            "It takes finetuned rows at 0 % and at 25 or 50 % pruned",
        ),
        _judge(
            "pruning leaves fewer primary capsules.",
            _against_unpruned(rows, _CAPSULES, -1, rows.trunks[:1]),
            "It takes an unpruned and a pruned row of the same trunk",
        ),
        _judge(
            f"pruning lowers the memory that training takes ({_meters(rows)}).",
            _against_unpruned(rows, _MEMORY, -1, rows.trunks),
            "It takes the memory of an unpruned and a pruned row of the same trunk",
        ),
        _judge(
            "pruning shortens an epoch of training.",
            _against_unpruned(rows, _EPOCH, -1, rows.trunks),
            "It takes the times of an unpruned and a pruned row of the same trunk",
        ),
        _judge(
            "with a frozen trunk accuracy falls as more is pruned.",
            _falls_step_by_step(rows),
            "It takes frozen rows at two pruned levels or more",
        ),
        _judge(
            "the bottleneck of pruned backbones has the higher entropy.",
            _against_unpruned(rows, _ENTROPY, 1, rows.trunks),
            "It takes the analysis of an unpruned and a pruned row of the same trunk",
        ),
        _judge(
            "beyond the paper: the capsule head is more accurate than a linear one.",
            _against_linear(rows),
            "It takes capsule rows and their linear controls",
        ),
        _judge(
            "beyond the paper: distorted images cost the capsule head less accuracy than a linear "
            "one.",
            _under_distortions(rows, analyses),
            "It takes the analysis of capsule networks with their linear controls",
        ),
    ]


def _judge(statement: str, comparisons: Sequence[_Comparison], needs: str) -> Claim:
    if not comparisons:
        return Claim(statement, "cannot be told", f"{needs}, which these results lack.")
    verdicts = [comparison.verdict for comparison in comparisons]
    verdict: Verdict = "undecided"
    if "holds" in verdicts:
        verdict = "holds" if set(verdicts) == {"holds"} else "holds in part"
    elif "does not hold" in verdicts:
        verdict = "does not hold"
    parts = []
    for comparison in comparisons:
        tail = "" if comparison.verdict == verdict else f" ({comparison.verdict})"
        parts.append(f"{comparison.what}: {comparison.words}{tail}")
    return Claim(statement, verdict, f"{_counted(verdicts)}{'; '.join(parts)}.")


def _counted(verdicts: Sequence[Verdict]) -> str:
    """Say how several comparisons came out, where they did not all come out alike."""
    counts = Counter(verdicts)
    if len(counts) == 1:
        return ""
    order: tuple[Verdict, ...] = ("holds", "does not hold", "undecided")
    return (
        f"{len(verdicts)} comparisons: "
        + ", ".join(f"{counts[one]} {_COUNTED[one]}" for one in order if counts[one])
        + ". "
    )


_COUNTED = {"holds": "for it", "does not hold": "against it", "undecided": "undecided"}


def _finetuned_above_frozen(rows: _Rows) -> list[_Comparison]:
    return [
        comparison
        for pruned in rows.levels("finetuned")
        if (
            comparison := _compare(
                f"{pruned} % pruned",
                _ACCURACY,
                1,
                rows.get("finetuned", pruned),
                rows.get("frozen", pruned),
                "finetuned",
                "frozen",
            )
        )
    ]


def _against_unpruned(
    rows: _Rows,
    figure: _Figure,
    sign: Literal[1, -1],
    trunks: Sequence[Trunk],
    levels: range = range(1, 100),
) -> list[_Comparison]:
    """Compare each pruned level with the unpruned network of the same trunk."""
    found = []
    for trunk in trunks:
        for pruned in rows.levels(trunk):
            if pruned in levels and (
                comparison := _compare(
                    f"{trunk}, {pruned} % pruned" if len(trunks) > 1 else f"{pruned} % pruned",
                    figure,
                    sign,
                    rows.get(trunk, pruned),
                    rows.get(trunk, 0),
                    "",
                    "unpruned",
                )
            ):
                found.append(comparison)
    return found


def _falls_step_by_step(rows: _Rows) -> list[_Comparison]:
    levels = rows.levels("frozen")
    return [
        comparison
        for less, more in itertools.pairwise(levels)
        if (
            comparison := _compare(
                f"from {less} to {more} % pruned",
                _ACCURACY,
                -1,
                rows.get("frozen", more),
                rows.get("frozen", less),
                "",
                f"at {less} %",
            )
        )
    ]


def _against_linear(rows: _Rows) -> list[_Comparison]:
    return [
        comparison
        for trunk in rows.trunks
        for pruned in rows.levels(trunk)
        if (
            comparison := _compare(
                f"{trunk}, {pruned} % pruned",
                _ACCURACY,
                1,
                rows.get(trunk, pruned),
                rows.get(trunk, pruned, "linear"),
                "capsules",
                "linear",
            )
        )
    ]


def _under_distortions(rows: _Rows, analyses: Mapping[str, Mapping[str, Any]]) -> list[_Comparison]:
    """Compare the accuracy that both heads lose, on average over the amounts of each distortion."""
    found = []
    for trunk in rows.trunks:
        for pruned in rows.levels(trunk):
            row = rows.get(trunk, pruned)
            linear = rows.get(trunk, pruned, "linear")
            if row is None or linear is None:
                continue
            clean = {cell.run: cell.values.get("accuracy") for cell in linear.cells}
            lost = [
                losses
                for cell in row.cells
                if (losses := _losses(cell, clean.get(cell.run), analyses.get(cell.run)))
            ]
            if lost:
                figure, what = _LOSS_TO_DISTORTION, f"{trunk}, {pruned} % pruned"
                found.append(_decide(what, figure, -1, lost, "capsules lose", "linear"))
    return found


@dataclass(frozen=True)
class _Pair:
    """A figure of one seed in two configurations, and the variance that its test images leave."""

    first: float
    second: float
    variance: float = 0


def _losses(cell: Cell, linear: float | None, analysis: Mapping[str, Any] | None) -> _Pair | None:
    """Give the accuracy that capsules and linear lose to distortions, on average over all."""
    if analysis is None:
        return None
    both = [r for r in analysis.get("robustness", ()) if _known(r, "capsules", "linear")]
    undistorted = [r for r in both if r["distortion"] == "none" or not r["amount"]]
    distorted = [r for r in both if r not in undistorted]
    if undistorted:
        starts = (
            _mean(r["capsules"] for r in undistorted),
            _mean(r["linear"] for r in undistorted),
        )
    elif "accuracy" in cell.values and linear is not None:
        starts = (cell.values["accuracy"], linear)
    else:
        return None
    if not distorted:
        return None
    ends = (_mean(r["capsules"] for r in distorted), _mean(r["linear"] for r in distorted))
    images = analysis.get("images")
    # The distorted images are the same ones time and again: they count once.
    variance = sum(end * (1 - end) for end in ends) / images if images else 0
    return _Pair(starts[0] - ends[0], starts[1] - ends[1], variance)


def _known(record: Mapping[str, Any], *keys: str) -> bool:
    return all(record.get(key) is not None for key in keys)


def _compare(
    what: str,
    figure: _Figure,
    sign: Literal[1, -1],
    first: Row | None,
    second: Row | None,
    first_name: str,
    second_name: str,
) -> _Comparison | None:
    """Compare a figure of two rows, paired by seed.

    Args:
        what: is compared, for the evidence.
        figure: which.
        sign: 1 if the claim is that the first is higher, -1 if lower.
        first: a row, or None if there is none.
        second: likewise.
        first_name: what the first is called in the evidence.
        second_name: likewise.

    Returns:
        None where no seed has both.
    """
    if first is None or second is None:
        return None
    pairs = []
    others = {cell.seed: cell for cell in second.cells if figure.value in cell.values}
    for cell in first.cells:
        if figure.value in cell.values and cell.seed in others:
            other = others[cell.seed]
            a, b = cell.values[figure.value], other.values[figure.value]
            variance = 0.0
            if figure is _ACCURACY:
                variance = _binomial(cell) + _binomial(other)
            pairs.append(_Pair(a, b, variance))
    return _decide(what, figure, sign, pairs, first_name, second_name) if pairs else None


def _binomial(cell: Cell) -> float:
    """The variance of an accuracy that the number of test images leaves."""
    accuracy, images = cell.values["accuracy"], cell.values.get("images")
    return accuracy * (1 - accuracy) / images if images else 0


def _decide(
    what: str,
    figure: _Figure,
    sign: Literal[1, -1],
    pairs: Sequence[_Pair],
    first_name: str,
    second_name: str,
) -> _Comparison:
    differences = [pair.first - pair.second for pair in pairs]
    difference = _mean(differences)
    error, known = _error(figure, pairs, differences)
    threshold = error if known else _ONE_SEED * abs(_mean(pair.second for pair in pairs))
    verdict: Verdict = "undecided"
    if abs(difference) > threshold:
        verdict = "holds" if difference * sign > 0 else "does not hold"
    elif figure.exact and difference == 0:
        verdict = "does not hold"
    return _Comparison(
        what,
        verdict,
        _in_words(figure, pairs, difference, error if known else None, first_name, second_name),
    )


def _error(
    figure: _Figure, pairs: Sequence[_Pair], differences: Sequence[float]
) -> tuple[float, bool]:
    """Give the error of the mean difference, and whether it is known."""
    count = len(pairs)
    # The seeds share their test images, so more of them do not lessen this part.
    binomial = math.sqrt(_mean(pair.variance for pair in pairs))
    if count == 1:
        return binomial, binomial > 0 or figure.exact
    mean = _mean(differences)
    spread = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    return max(math.sqrt(spread / count), binomial), True


def _in_words(
    figure: _Figure,
    pairs: Sequence[_Pair],
    difference: float,
    error: float | None,
    first_name: str,
    second_name: str,
) -> str:
    def write(value: float, sign: bool = False) -> str:
        return f"{value * figure.scale:{'+' if sign else ''}.{figure.digits}f}"

    unit = f" {figure.unit}" if figure.unit else ""
    first, second = _mean(p.first for p in pairs), _mean(p.second for p in pairs)
    name = f"{first_name} " if first_name else ""
    seeds = f"{len(pairs)} seed{'s' if len(pairs) > 1 else ''}"
    if error is None:
        margin = ", error unknown"
    else:
        margin = "" if figure.exact and error == 0 else f" ± {write(error)}"
    return (
        f"{name}{write(first)}{unit} against {write(second)}{unit} {second_name}, difference "
        f"{write(difference, sign=True)}{margin}{_POINTS.get(figure.unit, '')} ({seeds})"
    )


#: Unit of the difference of two percentages.
_POINTS = {"%": " points", "points": " points"}


def _meters(rows: _Rows) -> str:
    meters = {
        cell.memory_meter
        for trunk in rows.trunks
        for pruned in rows.levels(trunk)
        if (row := rows.get(trunk, pruned)) is not None
        for cell in row.cells
        if cell.memory_meter is not None
    }
    names = {"resident set": "resident set on a CPU", "NVML": "GPU memory by NVML"}
    return " or ".join(sorted(names.get(meter, meter) for meter in meters)) or "not measured"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
