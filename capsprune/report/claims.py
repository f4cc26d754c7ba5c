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
from statistics import fmean
from typing import Any, Literal

from capsprune.report.results import COMPARED, TRUNKS, Cell, Results, Row, Spread, grouped

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
class PaperClaim:
    """Something that the paper says, and what these results say of it."""

    statement: str
    verdict: Verdict
    #: The figures that the verdict rests on, in a sentence or two.
    evidence: str

    def to_dict(self) -> dict[str, str]:
        """Return the claim as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class _Quantity:
    """What claims are about."""

    value: str
    #: To be in `unit`.
    scale: float
    digits: int
    unit: str
    #: A size that is counted rather than measured.
    exact: bool = False

    def write(self, value: float, sign: str = "") -> str:
        """Write a value without the unit."""
        return f"{value * self.scale:{sign}.{self.digits}f}"


_ACCURACY = _Quantity("accuracy", 100, 1, "%")
_CAPSULES = _Quantity("primary_capsules", 1, 0, "capsules", exact=True)
_MEMORY = _Quantity("peak_memory_mb", 1, 0, "MB")
_EPOCH = _Quantity("epoch_seconds", 1, 2, "s")
_ENTROPY = _Quantity("bottleneck_entropy", 1, 3, "bits")
_LOSS_TO_DISTORTION = _Quantity("lost", 100, 1, "points")


@dataclass(frozen=True)
class _Pairing:
    """Two configurations that a claim compares."""

    #: Is compared, in words, and what the two are called.
    what: str
    first: Row | None
    second: Row | None
    first_name: str
    second_name: str


@dataclass(frozen=True)
class _Comparison:
    """A quantity in two configurations, over the seeds that both have."""

    verdict: Verdict
    #: What is compared, the two figures and their difference.
    words: str


@dataclass(frozen=True)
class _Pair:
    """A quantity of one seed in two configurations, and the variance that its images leave."""

    first: float
    second: float
    variance: float = 0


def claims(results: Results) -> list[PaperClaim]:
    """Judge what the paper says, and what it leaves open, on each data set and backbone.

    The rule is at the head of this module, and in `RULE` for readers.
    """
    found = []
    groups = grouped(results.rows, results.where)
    for where, rows in groups.items():
        for claim in _claims_on(_Rows(rows)):
            statement = claim.statement[0].upper() + claim.statement[1:]
            if len(groups) > 1:
                statement = f"{where}: {claim.statement}"
            found.append(replace(claim, statement=statement))
    return found


class _Rows:
    """The rows of one data set, backbone and source."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[tuple[str, int, str], Row] = {
            (row.trunk, row.pruned, row.head): row for row in rows if row.kind != "slim"
        }

    @property
    def trunks(self) -> list[str]:
        """Kinds of trunk that capsule rows have, the finetuned ones first."""
        return [trunk for trunk in TRUNKS if self.levels(trunk)]

    def levels(self, trunk: str) -> list[int]:
        """Pruned levels of capsule rows, the least first."""
        return sorted(p for t, p, head in self._rows if (t, head) == (trunk, "capsules"))

    def get(self, trunk: str, pruned: int, head: str = "capsules") -> Row | None:
        return self._rows.get((trunk, pruned, head))

    def trunks_compared(self) -> list[_Pairing]:
        return [
            _Pairing(f"{pruned} % pruned", self.get("finetuned", pruned),
                     self.get("frozen", pruned), "finetuned", "frozen")
            for pruned in self.levels("finetuned")
        ]  # fmt: skip

    def with_unpruned(self, trunks: Sequence[str], levels: range = range(1, 100)) -> list[_Pairing]:
        """Pair each pruned level with the unpruned network of the same trunk."""
        return [
            _Pairing(f"{trunk}, {pruned} % pruned" if len(trunks) > 1 else f"{pruned} % pruned",
                     self.get(trunk, pruned), self.get(trunk, 0), "", "unpruned")
            for trunk in trunks
            for pruned in self.levels(trunk)
            if pruned in levels
        ]  # fmt: skip

    def frozen_steps(self) -> list[_Pairing]:
        return [
            _Pairing(f"from {less} to {more} % pruned", self.get("frozen", more),
                     self.get("frozen", less), "", f"at {less} %")
            for less, more in itertools.pairwise(self.levels("frozen"))
        ]  # fmt: skip

    def with_linear(self, name: str) -> list[_Pairing]:
        return [
            _Pairing(f"{trunk}, {pruned} % pruned", self.get(trunk, pruned),
                     self.get(trunk, pruned, "linear"), name, "linear")
            for trunk in self.trunks
            for pruned in self.levels(trunk)
        ]  # fmt: skip

    @property
    def meters(self) -> str:
        """What measured the memory."""
        names = {"resident set": "resident set on a CPU", "NVML": "GPU memory by NVML"}
        cells = [c for row in self._rows.values() if row.head == "capsules" for c in row.cells]
        meters = {cell.memory_meter for cell in cells if cell.memory_meter is not None}
        return " or ".join(sorted(names.get(meter, meter) for meter in meters)) or "not measured"


def _claims_on(rows: _Rows) -> list[PaperClaim]:
    pruned_and_not = "an unpruned and a pruned row of the same trunk"
    return [
        _judge(
            "with a finetuned trunk the capsule network is more accurate than with a frozen one.",
            "rows of both kinds of trunk at the same pruned level",
            _compare(_ACCURACY, 1, rows.trunks_compared()),
        ),
        _judge(
            "finetuned, with 25 to 50 % of the FLOPs pruned it is not less accurate than unpruned.",
            "finetuned rows at 0 % and at 25 or 50 % pruned",
            _compare(_ACCURACY, 1, rows.with_unpruned(["finetuned"], range(20, 56))),
        ),
        _judge(
            "pruning leaves fewer primary capsules.",
            pruned_and_not,
            _compare(_CAPSULES, -1, rows.with_unpruned(rows.trunks[:1])),
        ),
        _judge(
            f"pruning lowers the memory that training takes ({rows.meters}).",
            f"the memory of {pruned_and_not}",
            _compare(_MEMORY, -1, rows.with_unpruned(rows.trunks)),
        ),
        _judge(
            "pruning shortens an epoch of training.",
            f"the times of {pruned_and_not}",
            _compare(_EPOCH, -1, rows.with_unpruned(rows.trunks)),
        ),
        _judge(
            "with a frozen trunk accuracy falls as more is pruned.",
            "frozen rows at two pruned levels or more",
            _compare(_ACCURACY, -1, rows.frozen_steps()),
        ),
        _judge(
            "the bottleneck of pruned backbones has the higher entropy.",
            f"the analysis of {pruned_and_not}",
            _compare(_ENTROPY, 1, rows.with_unpruned(rows.trunks)),
        ),
        _judge(
            "beyond the paper: the capsule head is more accurate than a linear one.",
            "capsule rows and their linear baselines",
            _compare(_ACCURACY, 1, rows.with_linear("capsules")),
        ),
        _judge(
            "beyond the paper: distorted images cost the capsule head less accuracy than a linear "
            "one.",
            "the analysis of capsule networks with their linear baselines",
            [
                _decide(_LOSS_TO_DISTORTION, -1, pairing, lost)
                for pairing in rows.with_linear("capsules lose")
                if (lost := _losses(pairing))
            ],
        ),
    ]


def _judge(statement: str, needs: str, comparisons: Sequence[_Comparison]) -> PaperClaim:
    if not comparisons:
        evidence = f"It takes {needs}, which these results lack."
        return PaperClaim(statement, "cannot be told", evidence)
    verdicts = Counter(comparison.verdict for comparison in comparisons)
    verdict: Verdict = "undecided"
    if verdicts["holds"]:
        verdict = "holds" if len(verdicts) == 1 else "holds in part"
    elif verdicts["does not hold"]:
        verdict = "does not hold"
    parts = [c.words + ("" if c.verdict == verdict else f" ({c.verdict})") for c in comparisons]
    # How several comparisons came out, where they did not all come out alike.
    counts = ", ".join(f"{verdicts[v]} {text}" for v, text in _COUNTED.items() if verdicts[v])
    counted = f"{len(comparisons)} comparisons: {counts}. " if len(verdicts) > 1 else ""
    return PaperClaim(statement, verdict, f"{counted}{'; '.join(parts)}.")


_COUNTED: dict[Verdict, str] = {
    "holds": "for it",
    "does not hold": "against it",
    "undecided": "undecided",
}


def _compare(
    quantity: _Quantity, sign: Literal[1, -1], pairings: Iterable[_Pairing]
) -> list[_Comparison]:
    """Compare a quantity of two rows, paired by seed; no comparison where no seed has both.

    Args:
        quantity: which.
        sign: 1 if the claim is that the first is higher, -1 if lower.
        pairings: the rows.
    """
    found = []
    for pairing in pairings:
        first, second = (
            {cell.seed: cell for cell in row.cells if quantity.value in cell.values} if row else {}
            for row in (pairing.first, pairing.second)
        )
        pairs = [
            _Pair(
                cell.values[quantity.value],
                second[seed].values[quantity.value],
                _binomial(cell) + _binomial(second[seed]) if quantity is _ACCURACY else 0,
            )
            for seed, cell in first.items()
            if seed in second
        ]
        if pairs:
            found.append(_decide(quantity, sign, pairing, pairs))
    return found


def _binomial(cell: Cell) -> float:
    """Return the variance of an accuracy that the number of test images leaves."""
    accuracy, images = cell.values["accuracy"], cell.values.get("images")
    return accuracy * (1 - accuracy) / images if images else 0


def _losses(pairing: _Pairing) -> list[_Pair]:
    """Return the accuracies that both heads lose, on average over the amounts of distortions."""
    if pairing.first is None or pairing.second is None:
        return []
    linear = {cell.run: cell.values.get("accuracy") for cell in pairing.second.cells}
    found = (
        _loss(cell, linear.get(cell.run), cell.analysis)
        for cell in pairing.first.cells
        if cell.analysis is not None
    )
    return [pair for pair in found if pair is not None]


def _loss(cell: Cell, linear: float | None, analysis: Mapping[str, Any]) -> _Pair | None:
    both = [
        record
        for record in analysis.get("robustness", ())
        if None not in (record.get("capsules"), record.get("linear"))
    ]
    clean = [record for record in both if record["distortion"] == "none" or not record["amount"]]
    distorted = [record for record in both if record not in clean]
    if not distorted:
        return None
    if clean:
        starts = [fmean(record[head] for record in clean) for head in COMPARED]
    elif "accuracy" in cell.values and linear is not None:
        starts = [cell.values["accuracy"], linear]
    else:
        return None
    ends = [fmean(record[head] for record in distorted) for head in COMPARED]
    images = analysis.get("images")
    # The distorted images are the same ones time and again: they count once.
    variance = sum(end * (1 - end) for end in ends) / images if images else 0
    return _Pair(starts[0] - ends[0], starts[1] - ends[1], variance)


def _decide(
    quantity: _Quantity, sign: Literal[1, -1], pairing: _Pairing, pairs: Sequence[_Pair]
) -> _Comparison:
    spread = Spread.of([pair.first - pair.second for pair in pairs])
    # The seeds share their test images, so more of them do not lessen this part.
    binomial = math.sqrt(fmean(pair.variance for pair in pairs))
    error: float | None = binomial
    if spread.deviation is not None:
        error = max(spread.deviation / math.sqrt(spread.count), binomial)
    elif not binomial and not quantity.exact:
        error = None
    second = fmean(pair.second for pair in pairs)
    threshold = _ONE_SEED * abs(second) if error is None else error
    verdict: Verdict = "undecided"
    if abs(spread.mean) > threshold:
        verdict = "holds" if spread.mean * sign > 0 else "does not hold"
    elif quantity.exact and spread.mean == 0:
        verdict = "does not hold"
    first = fmean(pair.first for pair in pairs)
    unit = f" {quantity.unit}" if quantity.unit else ""
    name = f"{pairing.first_name} " if pairing.first_name else ""
    seeds = f"{spread.count} seed{'s' if spread.count > 1 else ''}"
    if error is None:
        margin = ", error unknown"
    else:
        margin = "" if quantity.exact and error == 0 else f" ± {quantity.write(error)}"
    # The difference of two percentages is in points.
    points = " points" if quantity.unit in ("%", "points") else ""
    words = (
        f"{pairing.what}: {name}{quantity.write(first)}{unit} against "
        f"{quantity.write(second)}{unit} {pairing.second_name}, "
        f"difference {quantity.write(spread.mean, '+')}{margin}{points} ({seeds})"
    )
    return _Comparison(verdict, words)
