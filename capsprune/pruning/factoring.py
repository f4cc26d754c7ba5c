"""PrimaryCaps in two factors, in closed form: its rank becomes channels that can be removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from capsprune.capsules.network import CapsuleNetwork
from capsprune.capsules.primary.dense import DensePrimaryCaps
from capsprune.capsules.primary.factored import FactoredPrimaryCaps


@torch.no_grad()
def factor(network: CapsuleNetwork, batches: Sequence[Tensor]) -> CapsuleNetwork:
    """Copy a capsule network with its dense PrimaryCaps as two layers of full rank.

    The channels between them are the principal components of the outputs of PrimaryCaps on
    calibration images, greatest variance first, with the means in the biases. So the first N of
    them alone give the best approximation of rank N of these outputs (Eckart and Young 1936). Each
    component's scale is shared evenly between both layers, which keeps their gradients alike when
    they are fine-tuned (Khodak et al., "Initialization and Regularization of Factorized Neural
    Layers", ICLR 2021).

    Args:
        network: with a dense PrimaryCaps, in evaluation mode; it is left as it is.
        batches: calibration images, [batch, C, H, W] each, on the network's device.

    Returns:
        A network that computes the same, up to rounding.

    Raises:
        ValueError: if PrimaryCaps is of another kind, or there are no images.
    """
    dense = network.primary_caps
    if not isinstance(dense, DensePrimaryCaps):
        raise ValueError(f"PrimaryCaps of kind {dense.kind} has no factors.")
    if not batches:
        raise ValueError("Principal components need calibration images.")
    weight = dense.conv.weight.detach().double().flatten(1)
    assert dense.conv.bias is not None
    bias = dense.conv.bias.detach().double()
    mean, components = _principal_components(network, dense, batches)
    first = components.T @ weight  # [N, S x K x K]
    scales = first.norm(dim=1).sqrt()
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    layer = FactoredPrimaryCaps(
        dense.in_channels, dense.feature_size, len(scales), dense.capsules, dense.d1
    )
    layer.to(dense.conv.weight)
    layer.basis.weight.copy_((first / scales[:, None]).view_as(layer.basis.weight))
    assert layer.basis.bias is not None and layer.conv.bias is not None
    layer.basis.bias.copy_(components.T @ (bias - mean) / scales)
    layer.conv.weight.copy_((components * scales).view_as(layer.conv.weight))
    layer.conv.bias.copy_(mean)
    layer.train(dense.training)
    return copy.deepcopy(network, {id(dense): layer})


def _principal_components(
    network: CapsuleNetwork, dense: DensePrimaryCaps, batches: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mean [I x D1] and principal components [I x D1, N] of outputs before squashing."""
    outputs = dense.conv.out_channels
    device = dense.conv.weight.device
    total = torch.zeros(outputs, dtype=torch.float64, device=device)
    products = torch.zeros(outputs, outputs, dtype=torch.float64, device=device)
    images = 0
    for batch in batches:
        poses = dense.poses(network.trunk(batch)).flatten(1).double()
        total += poses.sum(dim=0)
        products.addmm_(poses.T, poses)
        images += len(poses)
    mean = total / images
    covariance = products / images - torch.outer(mean, mean)
    _, vectors = torch.linalg.eigh(covariance)  # in ascending order
    return mean, vectors.flip(1)
