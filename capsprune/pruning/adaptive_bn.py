"""Adaptive batch normalisation (EagleEye, section 3.3): statistics of the pruned network itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running mean and variance of every batch norm on training batches.

    Pruning removes inputs of each layer, so the statistics gathered before no longer hold. They are
    forgotten, and become the plain average over the batches given. Nothing else changes: no weight
    does, and layers other than batch norms stay in evaluation mode. A network without batch norms
    has nothing to recompute.

    Args:
        model: the pruned network; it comes back in evaluation mode.
        batches: normalised images, [batch, C, H, W] each.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
    try:
        for batch in batches:
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
