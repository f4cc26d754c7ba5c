"""The names of samplers and criteria, and nothing that takes long to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from capsprune.errors import StrategyError
from capsprune.tables import Table

if TYPE_CHECKING:
    from capsprune.pruning.criteria import Criterion

SamplerName = Literal["eagleeye", "random", "tpe", "cmaes", "evolution"]

SAMPLERS: tuple[str, ...] = get_args(SamplerName)

#: What ranks the channels of a group, by the name that `--criterion` takes.
CRITERIA: Table[Criterion] = Table(
    "criterion",
    {
        "l1": ("capsprune.pruning.criteria:l1", "sum of magnitudes of the filter"),
        "l2": ("capsprune.pruning.criteria:l2", "Euclidean norm of the filter"),
        "bn-scale": ("capsprune.pruning.criteria:bn_scale", "scale of the batch norm"),
        "taylor": ("capsprune.pruning.criteria:taylor", "first-order change of the loss"),
        "random": ("capsprune.pruning.criteria:random", "no criterion, to compare with"),
    },
    error=StrategyError,
)
