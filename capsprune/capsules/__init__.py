"""Capsule layers, routing-by-agreement, the margin loss, and the table of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.lazy import lazy_names

if TYPE_CHECKING:
    from capsprune.capsules.loss import margin_loss
    from capsprune.capsules.network import CapsuleNetwork, CapsuleOutput
    from capsprune.capsules.output import OutputCaps
    from capsprune.capsules.primary.base import PrimaryCaps
    from capsprune.capsules.routing import dynamic_routing, squash

__all__ = [
    "CapsuleNetwork",
    "CapsuleOutput",
    "OutputCaps",
    "PrimaryCaps",
    "dynamic_routing",
    "margin_loss",
    "squash",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CapsuleNetwork": "network",
        "CapsuleOutput": "network",
        "OutputCaps": "output",
        "PrimaryCaps": "primary.base",
        "dynamic_routing": "routing",
        "margin_loss": "loss",
        "squash": "routing",
    },
)
