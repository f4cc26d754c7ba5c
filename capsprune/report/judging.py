"""How a claim is judged on what was measured: by comparisons of two configurations.

A claim is a direction: some figure is higher, or lower, in one configuration than in another. It is
judged by comparisons, one for each pruned level (and trunk) that both configurations have. The two
figures of a comparison are paired by seed, and it is

- "holds" or "does not hold" where the mean of the paired differences is larger than its error;
- "undecided" where it is not, or where there is no difference.

Where a claim is that nothing is lost, what counts as nothing is added to the difference first.

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

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

from capsprune.report.results import Cell, Row, Spread

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
class Quantity:
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


ACCURACY = Quantity("accuracy", 100, 1, "%")


@dataclass(frozen=True)
class Pairing:
    """Two configurations that a claim compares."""

    #: Is compared, in words, and what the two are called.
    what: str
    first: Row | None
    second: Row | None
    first_name: str
    second_name: str


@dataclass(frozen=True)
class Comparison:
    """A quantity in two configurations, over the seeds that both have."""

    verdict: Verdict
    #: What is compared, the two figures and their difference.
    words: str


@dataclass(frozen=True)
class Pair:
    """A quantity of one seed in two configurations, and the variance that its images leave."""

    first: float
    second: float
    variance: float = 0


def judge(statement: str, needs: str, comparisons: Iterable[Comparison]) -> PaperClaim:
    """Judge a claim by its comparisons.

    Args:
        statement: the claim.
        needs: what it takes to compare, for where there is nothing.
        comparisons: how each came out.
    """
    comparisons = list(comparisons)
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


def compare(
    quantity: Quantity, sign: Literal[1, -1], pairings: Iterable[Pairing]
) -> list[Comparison]:
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
            Pair(
                cell.values[quantity.value],
                second[seed].values[quantity.value],
                binomial(cell) + binomial(second[seed]) if quantity is ACCURACY else 0,
            )
            for seed, cell in first.items()
            if seed in second
        ]
        if pairs:
            found.append(decide(quantity, sign, pairing, pairs))
    return found


def binomial(cell: Cell) -> float:
    """Return the variance of an accuracy that the number of test images leaves."""
    accuracy, images = cell.values["accuracy"], cell.values.get("images")
    return accuracy * (1 - accuracy) / images if images else 0


def decide(
    quantity: Quantity,
    sign: Literal[1, -1],
    pairing: Pairing,
    pairs: Sequence[Pair],
    margin: float = 0,
) -> Comparison:
    """Judge one comparison.

    Args:
        quantity: what is compared.
        sign: 1 if the claim is that the first is higher, -1 if lower.
        pairing: what the two are called.
        pairs: by seed; at least one.
        margin: by how much the first may fall short all the same.
    """
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
    ahead = spread.mean * sign + margin
    if abs(ahead) > threshold:
        verdict = "holds" if ahead > 0 else "does not hold"
    elif quantity.exact and spread.mean == 0:
        verdict = "does not hold"
    first = fmean(pair.first for pair in pairs)
    unit = f" {quantity.unit}" if quantity.unit else ""
    name = f"{pairing.first_name} " if pairing.first_name else ""
    seeds = f"{spread.count} seed{'s' if spread.count > 1 else ''}"
    if error is None:
        give_or_take = ", error unknown"
    else:
        give_or_take = "" if quantity.exact and error == 0 else f" ± {quantity.write(error)}"
    # The difference of two percentages is in points.
    points = " points" if quantity.unit in ("%", "points") else ""
    words = (
        f"{pairing.what}: {name}{quantity.write(first)}{unit} against "
        f"{quantity.write(second)}{unit} {pairing.second_name}, "
        f"difference {quantity.write(spread.mean, '+')}{give_or_take}{points} ({seeds})"
    )
    return Comparison(verdict, words)
