"""Which of the paper's claims hold on what was measured, in words.

How they are judged is in `capsprune.report.judging`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from capsprune.report.judging import (
    ACCURACY,
    Pair,
    Pairing,
    PaperClaim,
    Quantity,
    compare,
    decide,
    judge,
)
from capsprune.report.results import COMPARED, TRUNKS, Cell, Results, Row, grouped
from capsprune.report.slim_claims import slim_claims

_CAPSULES = Quantity("primary_capsules", 1, 0, "capsules", exact=True)
_MEMORY = Quantity("peak_memory_mb", 1, 0, "MB")
_EPOCH = Quantity("epoch_seconds", 1, 2, "s")
_ENTROPY = Quantity("bottleneck_entropy", 1, 3, "bits")
_LOSS_TO_DISTORTION = Quantity("lost", 100, 1, "points")


def claims(results: Results) -> list[PaperClaim]:
    """Judge what the paper says, and what it leaves open, on each data set and backbone.

    The rule is at the head of this module, and in `RULE` for readers.
    """
    found = []
    groups = grouped(results.rows, results.where)
    for where, rows in groups.items():
        for claim in (*_claims_on(_Rows(rows)), *slim_claims(rows)):
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

    def trunks_compared(self) -> list[Pairing]:
        return [
            Pairing(f"{pruned} % pruned", self.get("finetuned", pruned),
                     self.get("frozen", pruned), "finetuned", "frozen")
            for pruned in self.levels("finetuned")
        ]  # fmt: skip

    def with_unpruned(self, trunks: Sequence[str], levels: range = range(1, 100)) -> list[Pairing]:
        """Pair each pruned level with the unpruned network of the same trunk."""
        return [
            Pairing(f"{trunk}, {pruned} % pruned" if len(trunks) > 1 else f"{pruned} % pruned",
                     self.get(trunk, pruned), self.get(trunk, 0), "", "unpruned")
            for trunk in trunks
            for pruned in self.levels(trunk)
            if pruned in levels
        ]  # fmt: skip

    def frozen_steps(self) -> list[Pairing]:
        return [
            Pairing(f"from {less} to {more} % pruned", self.get("frozen", more),
                     self.get("frozen", less), "", f"at {less} %")
            for less, more in itertools.pairwise(self.levels("frozen"))
        ]  # fmt: skip

    def with_linear(self, name: str) -> list[Pairing]:
        return [
            Pairing(f"{trunk}, {pruned} % pruned", self.get(trunk, pruned),
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
        judge(
            "with a finetuned trunk the capsule network is more accurate than with a frozen one.",
            "rows of both kinds of trunk at the same pruned level",
            compare(ACCURACY, 1, rows.trunks_compared()),
        ),
        judge(
            "finetuned, with 25 to 50 % of the FLOPs pruned it is not less accurate than unpruned.",
            "finetuned rows at 0 % and at 25 or 50 % pruned",
            compare(ACCURACY, 1, rows.with_unpruned(["finetuned"], range(20, 56))),
        ),
        judge(
            "pruning leaves fewer primary capsules.",
            pruned_and_not,
            compare(_CAPSULES, -1, rows.with_unpruned(rows.trunks[:1])),
        ),
        judge(
            f"pruning lowers the memory that training takes ({rows.meters}).",
            f"the memory of {pruned_and_not}",
            compare(_MEMORY, -1, rows.with_unpruned(rows.trunks)),
        ),
        judge(
            "pruning shortens an epoch of training.",
            f"the times of {pruned_and_not}",
            compare(_EPOCH, -1, rows.with_unpruned(rows.trunks)),
        ),
        judge(
            "with a frozen trunk accuracy falls as more is pruned.",
            "frozen rows at two pruned levels or more",
            compare(ACCURACY, -1, rows.frozen_steps()),
        ),
        judge(
            "the bottleneck of pruned backbones has the higher entropy.",
            f"the analysis of {pruned_and_not}",
            compare(_ENTROPY, 1, rows.with_unpruned(rows.trunks)),
        ),
        judge(
            "beyond the paper: the capsule head is more accurate than a linear one.",
            "capsule rows and their linear baselines",
            compare(ACCURACY, 1, rows.with_linear("capsules")),
        ),
        judge(
            "beyond the paper: distorted images cost the capsule head less accuracy than a linear "
            "one.",
            "the analysis of capsule networks with their linear baselines",
            [
                decide(_LOSS_TO_DISTORTION, -1, pairing, lost)
                for pairing in rows.with_linear("capsules lose")
                if (lost := _losses(pairing))
            ],
        ),
    ]


def _losses(pairing: Pairing) -> list[Pair]:
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


def _loss(cell: Cell, linear: float | None, analysis: Mapping[str, Any]) -> Pair | None:
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
    return Pair(starts[0] - ends[0], starts[1] - ends[1], variance)
