"""Routing-by-agreement (Sabour et al. 2017; the paper's equations 1 to 4).

No vote is ever formed. Since `W_ij` is linear, the weighted sum of equation (2) is one matrix
product for each output capsule once `u_i` is scaled by `c_ij`, and the agreement of equation (4)
is `u_i . (W_ij v_j)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added under the square root of `squash`.
SQUASH_EPSILON = 1e-6


def squash(s: Tensor, epsilon: float = SQUASH_EPSILON) -> Tensor:
    """Shorten each vector to a length in [0, 1), keeping its direction: equation (3).

    Args:
        s: un-normalised poses, [..., D].
        epsilon: added under the square root, so that the gradient at zero exists.

    Returns:
        Poses of the same shape.
    """
    squared_norm = s.square().sum(dim=-1, keepdim=True)
    return s * (squared_norm / (1 + squared_norm) / torch.sqrt(squared_norm + epsilon))


def dynamic_routing(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    iterations: int = 3,
    epsilon: float = SQUASH_EPSILON,
) -> Tensor:
    """Route primary capsules to output capsules by agreement: equations (1) to (4).

    As in the authors' published code, only the last iteration carries gradients.

    Args:
        u: poses of the primary capsules, [batch, I, D1].
        weight: transformation matrices, [J, I, D1, D2]; i votes `u_i @ weight[j, i]` for j.
        bias: added to `s_j` before squashing, [J, D2].
        iterations: how often equations (2) to (4) are repeated, at least 1.
        epsilon: see `squash`.

    Returns:
        Poses of the output capsules, [batch, J, D2].

    Raises:
        ValueError: if the shapes do not fit each other, or `iterations` is below 1.
    """
    _check_shapes(u, weight, bias, iterations)
    coupling: Tensor | None = None
    if iterations > 1:
        with torch.no_grad():
            coupling = _couplings(u, weight, bias, iterations, epsilon)
    return squash(_total_input(u, weight, bias, coupling), epsilon).transpose(0, 1)


def _couplings(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Tensor:
    """Coupling coefficients [J, batch, I] with which the last iteration sums the votes."""
    classes, capsules, d1, d2 = weight.shape
    folded = weight.reshape(classes, capsules * d1, d2).transpose(1, 2)
    logits: Tensor | None = None
    coupling: Tensor | None = None
    for _ in range(iterations - 1):
        v = squash(_total_input(u, weight, bias, coupling), epsilon)
        back = torch.bmm(v, folded).view(classes, -1, capsules, d1)
        agreement = (back * u).sum(dim=-1)
        logits = agreement if logits is None else logits + agreement
        coupling = torch.softmax(logits, dim=0)
    assert coupling is not None
    return coupling


def _total_input(u: Tensor, weight: Tensor, bias: Tensor | None, coupling: Tensor | None) -> Tensor:
    """`s_j` of equation (2), [J, batch, D2]; without `coupling` all are 1 / J."""
    classes, capsules, d1, d2 = weight.shape
    matrices = weight.reshape(classes, capsules * d1, d2)
    if coupling is None:
        s = torch.matmul(u.reshape(-1, capsules * d1) / classes, matrices)
    else:
        scaled = (coupling.unsqueeze(-1) * u).view(classes, -1, capsules * d1)
        s = torch.bmm(scaled, matrices)
    return s if bias is None else s + bias.unsqueeze(1)


def _check_shapes(u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> None:
    if u.dim() != 3 or weight.dim() != 4 or u.shape[1:] != weight.shape[1:3]:
        raise ValueError(
            f"u must be [batch, I, D1] and weight [J, I, D1, D2], not {list(u.shape)} and "
            f"{list(weight.shape)}."
        )
    if bias is not None and bias.shape != (weight.shape[0], weight.shape[3]):
        raise ValueError(f"bias must be [J, D2] of weight, not {list(bias.shape)}.")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}.")


@torch.library.custom_op("capsprune::dynamic_routing", mutates_args=())
def dynamic_routing_op(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Tensor:
    """`dynamic_routing` as one operator, so that an exported graph keeps it as one node.

    It has no gradient: training calls `dynamic_routing`.
    """
    return dynamic_routing(u, weight, bias, iterations, epsilon).contiguous()


@dynamic_routing_op.register_fake
def _(u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float) -> Tensor:
    return u.new_empty(u.shape[0], weight.shape[0], weight.shape[3])
