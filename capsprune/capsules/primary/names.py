"""The table of the kinds of PrimaryCaps, and nothing that takes long to import.

A new kind is one file with a subclass of `capsprune.capsules.primary.base.PrimaryCaps`, a line
here, and, for it to be pruned, an adapter (`capsprune.pruning.layers.adapts`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.errors import ModelError
from capsprune.tables import Table

if TYPE_CHECKING:
    from capsprune.capsules.primary.base import PrimaryCaps

#: The paper's.
DENSE = "dense"
#: What the dense one is replaced by to be smaller.
FACTORED = "factored"

_HERE = "capsprune.capsules.primary"

PRIMARIES: Table[type[PrimaryCaps]] = Table(
    "kind of PrimaryCaps",
    {
        DENSE: (f"{_HERE}.dense:DensePrimaryCaps", "one K x K convolution, the paper's"),
        FACTORED: (
            f"{_HERE}.factored:FactoredPrimaryCaps",
            "K x K to a few channels, then 1 x 1",
        ),
        "depthwise": (
            f"{_HERE}.depthwise:DepthwisePrimaryCaps",
            "K x K on each channel by itself, Efficient-CapsNet's",
        ),
        "pointwise": (
            f"{_HERE}.spatial:PointwisePrimaryCaps",
            "1 x 1, each of the K x K positions makes capsules",
        ),
        "spatial": (
            f"{_HERE}.spatial:SpatialPrimaryCaps",
            "9 x 9 of stride 2, each position makes capsules, Sabour's",
        ),
    },
    error=ModelError,
)
