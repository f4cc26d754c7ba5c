"""PrimaryCaps of several kinds: what turns a trunk's feature map into primary capsules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.lazy import lazy_names

if TYPE_CHECKING:
    from capsprune.capsules.primary.base import PrimaryCaps
    from capsprune.capsules.primary.dense import DensePrimaryCaps
    from capsprune.capsules.primary.depthwise import DepthwisePrimaryCaps
    from capsprune.capsules.primary.factored import FactoredPrimaryCaps
    from capsprune.capsules.primary.spatial import PointwisePrimaryCaps, SpatialPrimaryCaps

__all__ = [
    "DensePrimaryCaps",
    "DepthwisePrimaryCaps",
    "FactoredPrimaryCaps",
    "PointwisePrimaryCaps",
    "PrimaryCaps",
    "SpatialPrimaryCaps",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DensePrimaryCaps": "dense",
        "DepthwisePrimaryCaps": "depthwise",
        "FactoredPrimaryCaps": "factored",
        "PointwisePrimaryCaps": "spatial",
        "PrimaryCaps": "base",
        "SpatialPrimaryCaps": "spatial",
    },
)
