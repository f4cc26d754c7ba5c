"""What PrunedCaps says of pruned capsules, judged on the slim networks of some results.

PrunedCaps (Sharifi, Shiri and Baniasadi, ICMLA 2021) removes 95 % of the primary capsules of
Sabour's network by their rank, without a loss on sets like MNIST, and is up to 9.9 times as fast.
It is the routing that capsules are removed from, so its time is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from capsprune.option_types import DEFAULT_TOLERANCE
from capsprune.report.judging import (
    Comparison,
    Pair,
    Pairing,
    PaperClaim,
    Quantity,
    binomial,
    decide,
    judge,
)
from capsprune.report.results import Row, Trunk

#: Per cent of the primary capsules that are removed, and ranks of PrimaryCaps.
_REMOVED = (50, 75, 90, 95, 98)
_RANKS = (64, 16, 8)
#: A network with so many points more or less of its capsules removed counts as one of these.
_NEAR = 1.5
#: Accuracy that is no loss: `--tolerance` of prune-caps unless told otherwise.
_TOLERANCE = DEFAULT_TOLERANCE / 100
#: How much faster the routing is said to be, at most, and with how many per cent removed.
_FASTER, _FASTER_AT = 9.9, 95
#: Losses are of some tenths of a point.
_ACCURACY = Quantity("accuracy", 100, 2, "%")
_SPEED = Quantity("", 1, 1, "times")
_BATCHES = (1, 32)
#: Kind of trunk, pruned level and head.
_Network = tuple[Trunk, int, str]

NOTE = (
    "A slim network is compared with the one that it was made from, on the same images, of which "
    "both tell nearly all alike: the error of a difference is the standard error over the seeds, "
    "and the binomial one, which takes them for independent, with one seed alone. Where that "
    "network was fine-tuned like the slim ones too (a size of flops: 1), it is so in comparisons."
)


def slim_claims(rows: Sequence[Row]) -> list[PaperClaim]:
    """Judge what becomes of accuracy and speed where capsules alone, or the rank, are pruned.

    Args:
        rows: of one data set, backbone and source.

    Returns:
        Nothing where no network was pruned so.
    """
    whole = {_network(row): row for row in rows if row.kind == "capsules"}
    tuned = {_network(row): row for row in rows if row.slim and row.asked == "nothing"}
    fewer = [row for row in rows if row.slim and row.asked == "capsules" and _removed(row) > 0]
    factored = [row for row in rows if row.slim and row.asked == "primary_rank"]
    told = f"loses at most {DEFAULT_TOLERANCE:g} points of accuracy."
    found = []
    for percent in _REMOVED if fewer else ():
        near = [row for row in fewer if abs(_removed(row) - percent) < _NEAR]
        found.append(
            judge(
                f"PrunedCaps: with {percent} % of its primary capsules removed the network {told}",
                f"networks with about {percent} % of the capsules removed",
                _losses(near, _kept, tuned),
            )
        )
        if percent == _FASTER_AT:
            found.append(
                judge(
                    f"PrunedCaps: with {percent} % removed the routing is {_FASTER} times as fast.",
                    "the latencies of the routing before and after",
                    [
                        compared
                        for row in near
                        if (before := whole.get(_network(row)))
                        for compared in _speeds(row, before)
                    ],
                )
            )
    for rank in _RANKS if factored else ():
        found.append(
            judge(
                f"beyond the papers: with PrimaryCaps factored at rank {rank} the network {told}",
                f"networks whose PrimaryCaps has rank {rank}",
                _losses([r for r in factored if _mean(r, "primary_rank") == rank], _rank, tuned),
            )
        )
    return found


def _network(row: Row) -> _Network:
    return row.trunk, row.pruned, row.head


def _mean(row: Row, value: str) -> float:
    spread = row.spread(value)
    return 0 if spread is None else spread.mean


def _removed(row: Row) -> float:
    """Return per cent of the primary capsules that a row has lost."""
    whole = _mean(row, "primary_capsules_whole")
    return 100 * (1 - _mean(row, "primary_capsules") / whole) if whole else 0


def _kept(row: Row) -> str:
    kept, whole = _mean(row, "primary_capsules"), _mean(row, "primary_capsules_whole")
    return f"{kept:.3g} of {whole:.4g} capsules"


def _rank(row: Row) -> str:
    return f"rank {_mean(row, 'primary_rank'):.0f}"


def _what(row: Row, told: str, *further: str) -> str:
    by = [f"by {row.criterion}"] if row.criterion and row.asked == "capsules" else []
    return ", ".join((row.trunk, f"{row.pruned} % pruned", " ".join((told, *by)), *further))


def _losses(
    rows: Iterable[Row], tell: Callable[[Row], str], tuned: Mapping[_Network, Row]
) -> Iterator[Comparison]:
    """Compare slim networks with those that they were made from: where there are, fine-tuned alike.

    Args:
        rows: the slim networks.
        tell: says what was left of one.
        tuned: those that were fine-tuned alike.
    """
    for row in rows:
        control = tuned.get(_network(row))
        key = "accuracy" if control else "accuracy_whole"
        before = {cell.seed: cell.values.get(key) for cell in (control or row).cells}
        found = [
            (cell, accuracy)
            for cell in row.cells
            if "accuracy" in cell.values and (accuracy := before.get(cell.seed)) is not None
        ]
        pairs = [
            # The seeds tell what the images leave open, which are the same before and after.
            Pair(cell.values["accuracy"], accuracy, 2 * binomial(cell) if len(found) == 1 else 0)
            for cell, accuracy in found
        ]
        name = "of the whole network" + (", fine-tuned alike" if control else "")
        if pairs:
            pairing = Pairing(_what(row, tell(row)), row, control, "", name)
            yield decide(_ACCURACY, 1, pairing, pairs, margin=_TOLERANCE)


def _speeds(row: Row, before: Row) -> Iterator[Comparison]:
    """Compare how much faster the routing has become with what was published, at each batch."""
    of_whole = {cell.seed: cell for cell in before.cells}
    for batch in _BATCHES:
        key = f"routing_ms_batch_{batch}"
        pairs = [
            Pair(of_whole[cell.seed].values[key] / cell.values[key], _FASTER)
            for cell in row.cells
            if cell.values.get(key) and cell.seed in of_whole and key in of_whole[cell.seed].values
        ]
        if pairs:
            pairing = Pairing(
                _what(row, _kept(row), f"batch {batch}"), row, before, "", "published"
            )
            yield decide(_SPEED, 1, pairing, pairs)
