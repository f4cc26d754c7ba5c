"""Which of the paper's claims hold on what was measured, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "does not hold", "undecided", "cannot be told"]


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and what these results say of it."""

    statement: str
    verdict: Verdict
    #: The figures that the verdict rests on, in a sentence or two.
    evidence: str
