"""Capsule layers, routing-by-agreement, the margin loss."""

from capsprune.capsules.loss import margin_loss
from capsprune.capsules.network import CapsuleNetwork, CapsuleOutput
from capsprune.capsules.output import OutputCaps
from capsprune.capsules.primary import PrimaryCaps
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
