"""Routing-by-agreement (Sabour et al. 2017; the paper's equations 1 to 4).

No vote is ever formed. Since `W_ij` is linear, the weighted sum of equation (2) is one matrix
product for each output capsule once `u_i` is scaled by `c_ij`, and the agreement of equation (4)
is `u_i . (W_ij v_j)`. Being linear in `v_j`, the logits of an iteration need only the sum of the
poses of all earlier ones, so that nothing of the size of the votes or the coupling coefficients
is kept from one iteration to the next, or for the backward pass.

`torch.ops.capsprune.dynamic_routing` is one operator to `torch.export` and `torch.compile`. float32
tensors on the CPU go through the C++ kernels of `capsprune.native`, if they were built; everything
else, and everything without them, through the PyTorch code below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capsprune import native

#: Added under the square root of `squash`.
SQUASH_EPSILON = 1e-6


def squash(s: Tensor, epsilon: float = SQUASH_EPSILON) -> Tensor:
    """Shorten each vector to a length in [0, 1), keeping its direction: equation (3).

    Args:
        s: un-normalised poses, [..., D].
        epsilon: added under the square root, so that the gradient at zero exists.

    Returns:
        Poses of the same shape and dtype.
    """
    # The square of a length of 256 is infinite in float16, and epsilon is 0 there.
    wide = s.float() if s.dtype in (torch.float16, torch.bfloat16) else s
    squared_norm = wide.square().sum(dim=-1, keepdim=True)
    squashed = wide * (squared_norm / (1 + squared_norm) / torch.sqrt(squared_norm + epsilon))
    return squashed.to(s.dtype)


def dynamic_routing(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    iterations: int = 3,
    epsilon: float = SQUASH_EPSILON,
    *,
    all_gradients: bool = False,
) -> Tensor:
    """Route primary capsules to output capsules by agreement: equations (1) to (4).

    As in the authors' published code, only the last iteration carries gradients, unless
    `all_gradients` is given. Under autocast, and for float16 and bfloat16, the arithmetic is
    float32. Gradients have no gradients. What `torch.jit.trace` records, for the legacy ONNX
    exporter too, are PyTorch's own operators, for inference.

    Args:
        u: poses of the primary capsules, [batch, I, D1].
        weight: transformation matrices, [J, I, D1, D2]; i votes `u_i @ weight[j, i]` for j.
        bias: added to `s_j` before squashing, [J, D2].
        iterations: how often equations (2) to (4) are repeated, at least 1.
        epsilon: see `squash`.
        all_gradients: let every iteration carry gradients; this backward pass is PyTorch's.

    Returns:
        Poses of the output capsules, [batch, J, D2]; the dtype of `u`, but float32 under autocast.

    Raises:
        ValueError: if the shapes, dtypes or devices do not fit each other, or `iterations` is
            below 1.
    """
    if torch.jit.is_tracing():  # What is traced knows no operators but PyTorch's own.
        _check(u, weight, bias, iterations)
        return _forward(u, weight, bias, iterations, epsilon)
    return dynamic_routing_op(u, weight, bias, iterations, epsilon, all_gradients)


@torch.library.custom_op("capsprune::dynamic_routing", mutates_args=())
def dynamic_routing_op(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    epsilon: float,
    all_gradients: bool = False,
) -> Tensor:
    """`dynamic_routing` as one operator, so that an exported graph keeps it as one node."""
    _check(u, weight, bias, iterations)
    if _native_serves(u, weight):
        return _native_forward(u, weight, bias, iterations, epsilon)
    return _forward(u, weight, bias, iterations, epsilon)


@dynamic_routing_op.register_fake
def _(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    epsilon: float,
    all_gradients: bool = False,
) -> Tensor:
    _check(u, weight, bias, iterations)
    return u.new_empty(u.shape[0], weight.shape[0], weight.shape[3])


@torch.library.custom_op("capsprune::dynamic_routing_backward", mutates_args=())
def dynamic_routing_backward_op(
    v_gradient: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    epsilon: float,
    all_gradients: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, weight and bias; the forward pass is computed once more.

    A gradient that is not among the three `wanted` is an empty tensor.
    """
    wanted = [wanted[0], wanted[1], wanted[2] and bias is not None]
    if _native_serves(u, weight) and not all_gradients:
        return _native_backward(v_gradient, u, weight, bias, iterations, epsilon, wanted)
    inputs = _widened(u, weight, bias)
    sums: list[Tensor | None]
    if all_gradients:
        sums = [None, *_sums_of_poses(*inputs, iterations - 1, epsilon)]
    else:
        sums = [_sum_of_poses(*inputs, iterations - 1, epsilon)]
    gradient = v_gradient.to(inputs[0].dtype).transpose(0, 1)
    totals: list[Tensor | None] = [None, None, None]
    # Each pose also counts in all the sums after it.
    poses_gradient: Tensor | None = None
    for poses in reversed(sums):
        taken, before = _step_gradients(
            inputs, poses, epsilon, gradient, wanted, through_couplings=all_gradients
        )
        for n, part in enumerate(taken):
            total = totals[n]
            totals[n] = part if total is None or part is None else total.add_(part)
        if before is None:
            break
        poses_gradient = gradient = before if poses_gradient is None else poses_gradient + before
    return (
        _gradient_as(totals[0], u),
        _gradient_as(totals[1], weight),
        _gradient_as(totals[2], u if bias is None else bias),
    )


@dynamic_routing_backward_op.register_fake
def _(
    v_gradient: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    epsilon: float,
    all_gradients: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        u.new_empty(u.shape if wanted[0] else (0,)),
        weight.new_empty(weight.shape if wanted[1] else (0,)),
        u.new_empty((0,)) if bias is None or not wanted[2] else bias.new_empty(bias.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weight, bias, ctx.iterations, ctx.epsilon, ctx.all_gradients = inputs
    ctx.save_for_backward(u, weight, bias)


def _backward(ctx: Any, v_gradient: Tensor) -> tuple[Tensor | None, ...]:
    u, weight, bias = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = dynamic_routing_backward_op(
        v_gradient, u, weight, bias, ctx.iterations, ctx.epsilon, ctx.all_gradients, wanted
    )
    kept = [part if needed else None for part, needed in zip(gradients, wanted, strict=True)]
    return (*kept, None, None, None)


dynamic_routing_op.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    dynamic_routing_op.register_autocast(_device, torch.float32)


# ---- In C++ ----


def _native_serves(u: Tensor, weight: Tensor) -> bool:
    """Whether the C++ kernels take these tensors."""
    return (
        u.device.type == "cpu"
        and u.dtype == torch.float32
        and weight.dtype == torch.float32
        and min(weight.shape) > 0
        and native.load() is not None
    )


def _native_forward(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Tensor:
    u, weight = u.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    v = u.new_empty(u.shape[0], weight.shape[0], weight.shape[3])
    native.routing_forward(
        _sizes(u, weight),
        iterations,
        epsilon,
        (u.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr()),
        v.data_ptr(),
        torch.get_num_threads(),
    )
    return v


def _native_backward(
    v_gradient: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    epsilon: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    u, weight, v_gradient = u.contiguous(), weight.contiguous(), v_gradient.contiguous()
    bias = None if bias is None else bias.contiguous()
    made = [
        torch.empty(like.shape, dtype=torch.float32) if want else torch.empty(0)
        for like, want in zip((u, weight, u if bias is None else bias), wanted, strict=True)
    ]
    native.routing_backward(
        _sizes(u, weight),
        iterations,
        epsilon,
        (u.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr()),
        (
            v_gradient.data_ptr(),
            made[0].data_ptr() if wanted[0] else None,
            made[1].data_ptr() if wanted[1] else None,
            made[2].data_ptr() if wanted[2] else None,
        ),
        torch.get_num_threads(),
    )
    return made[0], made[1], made[2]


def _sizes(u: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    classes, capsules, d1, d2 = weight.shape
    return u.shape[0], capsules, classes, d1, d2


# ---- In PyTorch; poses are [J, batch, D2] here. ----


def _forward(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Tensor:
    """Poses [batch, J, D2] after all iterations."""
    wide = _widened(u, weight, bias)
    poses = _sum_of_poses(*wide, iterations - 1, epsilon)
    return _step(*wide, poses, epsilon).transpose(0, 1).to(u.dtype).contiguous()


def _widened(
    u: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the inputs in the precision of the arithmetic: at least float32."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    return u.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _sum_of_poses(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Tensor | None:
    """Sum of the poses of the first iterations; None of none."""
    last: Tensor | None = None
    for poses in _sums_of_poses(u, weight, bias, iterations, epsilon):
        last = poses
    return last


def _sums_of_poses(
    u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, epsilon: float
) -> Iterator[Tensor]:
    """After each iteration, the sum of the poses so far."""
    poses: Tensor | None = None
    for _ in range(iterations):
        v = _step(u, weight, bias, poses, epsilon)
        poses = v if poses is None else poses + v
        yield poses


def _step(
    u: Tensor, weight: Tensor, bias: Tensor | None, poses: Tensor | None, epsilon: float
) -> Tensor:
    """Poses after one iteration, from the sum of the poses before it, which is None at first."""
    coupling = None if poses is None else _couplings(u, weight, poses)
    return squash(_total_input(u, weight, bias, coupling), epsilon)


def _couplings(u: Tensor, weight: Tensor, poses: Tensor) -> Tensor:
    """Coupling coefficients [J, batch, I] after the sum of the poses of the earlier iterations."""
    return torch.softmax((_backwards(poses, weight) * u).sum(dim=-1), dim=0)


def _backwards(poses: Tensor, weight: Tensor) -> Tensor:
    """`W_ij v_j` of equation (4), [J, batch, I, D1]."""
    classes, capsules, d1, d2 = weight.shape
    folded = weight.reshape(classes, capsules * d1, d2).transpose(1, 2)
    return torch.bmm(poses, folded).view(classes, -1, capsules, d1)


def _scaled(u: Tensor, factors: Tensor) -> Tensor:
    """u with each capsule multiplied by its factor [J, batch, I]: [J, batch, I * D1]."""
    return (factors.unsqueeze(-1) * u).flatten(2)


def _total_input(u: Tensor, weight: Tensor, bias: Tensor | None, coupling: Tensor | None) -> Tensor:
    """`s_j` of equation (2), [J, batch, D2]; without `coupling` all are 1 / J."""
    classes, capsules, d1, d2 = weight.shape
    matrices = weight.reshape(classes, capsules * d1, d2)
    if coupling is None:
        s = torch.matmul(u.reshape(-1, capsules * d1) / classes, matrices)
    else:
        s = torch.bmm(_scaled(u, coupling), matrices)
    return s if bias is None else s + bias.unsqueeze(1)


def _squash_gradient(s: Tensor, epsilon: float, v_gradient: Tensor) -> Tensor:
    """Gradient of s from that of `squash(s)`."""
    squared_norm = s.square().sum(dim=-1, keepdim=True)
    above, inside = 1 + squared_norm, squared_norm + epsilon
    root = torch.sqrt(inside)
    part = squared_norm / above
    slope = 1 / above / above / root - part / inside / root / 2
    along = (s * v_gradient).sum(dim=-1, keepdim=True)
    return v_gradient * (part / root) + s * (2 * slope * along)


def _step_gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    poses: Tensor | None,
    epsilon: float,
    v_gradient: Tensor,
    wanted: list[bool],
    *,
    through_couplings: bool,
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients through one iteration.

    Args:
        inputs: u, weight, bias.
        poses: the sum of the poses before the iteration, or None.
        epsilon: see `squash`.
        v_gradient: of the poses after the iteration, [J, batch, D2].
        wanted: which of the inputs need theirs.
        through_couplings: otherwise the coupling coefficients are constants.

    Returns:
        Those of the inputs, and that of `poses` if it is given and `through_couplings` is set.
    """
    u, weight, bias = inputs
    classes = weight.shape[0]
    if poses is None:
        coupling = u.new_full((classes, *u.shape[:2]), 1 / classes)
    else:
        coupling = _couplings(u, weight, poses)
    s = _total_input(u, weight, bias, coupling)
    s_gradient = _squash_gradient(s, epsilon, v_gradient)
    taken: list[Tensor | None] = [None, None, None]
    if wanted[2]:
        taken[2] = s_gradient.sum(dim=1)
    if wanted[1]:
        taken[1] = torch.bmm(_scaled(u, coupling).transpose(1, 2), s_gradient).view_as(weight)
    through_couplings = through_couplings and poses is not None
    if not wanted[0] and not through_couplings:
        return taken, None
    back = _backwards(s_gradient, weight)
    if wanted[0]:
        taken[0] = (coupling.unsqueeze(-1) * back).sum(dim=0)
    if not through_couplings:
        return taken, None
    assert poses is not None
    coupling_gradient = (back * u).sum(dim=-1)
    mean = (coupling * coupling_gradient).sum(dim=0)
    scaled = _scaled(u, logits_gradient := coupling * (coupling_gradient - mean))
    if taken[0] is not None:
        taken[0] += (logits_gradient.unsqueeze(-1) * _backwards(poses, weight)).sum(dim=0)
    if taken[1] is not None:
        taken[1] += torch.bmm(scaled.transpose(1, 2), poses).view_as(weight)
    return taken, torch.bmm(scaled, weight.flatten(1, 2))


def _gradient_as(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if gradient is None else gradient.to(like.dtype).contiguous()


def _check(u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> None:
    if u.dim() != 3 or weight.dim() != 4 or u.shape[1:] != weight.shape[1:3]:
        raise ValueError(
            f"u must be [batch, I, D1] and weight [J, I, D1, D2], not {list(u.shape)} and "
            f"{list(weight.shape)}."
        )
    if bias is not None and bias.shape != (weight.shape[0], weight.shape[3]):
        raise ValueError(f"bias must be [J, D2] of weight, not {list(bias.shape)}.")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}.")
    if not u.is_floating_point():
        raise ValueError(f"u must be of floating-point numbers, not {u.dtype}.")
    for other in (weight, bias):
        if other is not None and (other.dtype, other.device) != (u.dtype, u.device):
            raise ValueError(
                f"u is {u.dtype} on {u.device} and weight or bias {other.dtype} on {other.device}; "
                "convert them to one dtype and device, or use autocast."
            )
