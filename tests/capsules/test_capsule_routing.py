"""Routing against the paper's equations (1) to (4), with every vote written out, in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capsprune.capsules import dynamic_routing
from capsprune.capsules.routing import SQUASH_EPSILON, dynamic_routing_op


def routed_slowly(u, weight, bias, iterations, epsilon=SQUASH_EPSILON):
    """Every equation as printed; all iterations but the last see constants."""
    batch, capsules, _ = u.shape
    classes = weight.shape[0]
    votes = torch.stack(  # (1), [batch, I, J, D2]
        [
            torch.stack([u[:, i] @ weight[j, i] for j in range(classes)], dim=1)
            for i in range(capsules)
        ],
        dim=1,
    )
    logits = torch.zeros(batch, capsules, classes, dtype=u.dtype)
    for iteration in range(1, iterations + 1):
        last = iteration == iterations
        seen = votes if last else votes.detach()
        s = (torch.softmax(logits, dim=2).unsqueeze(-1) * seen).sum(dim=1)  # (2)
        if bias is not None:
            s = s + (bias if last else bias.detach())
        squared = (s * s).sum(dim=-1, keepdim=True)
        v = squared / (1 + squared) * s / torch.sqrt(squared + epsilon)  # (3)
        logits = logits + (seen * v.unsqueeze(1)).sum(dim=-1)  # (4)
    return v


def drawn(seed, batch, capsules, classes, d1, d2, *, scale=1.0, biased=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u = normal(batch, capsules, d1) * scale
    weight = normal(classes, capsules, d1, d2) * 0.5
    return u, weight, normal(classes, d2) * 0.5 if biased else None


SIZES = {
    "batch": st.integers(0, 3),
    "capsules": st.integers(1, 7),
    "classes": st.integers(1, 5),
    "d1": st.integers(1, 5),
    "d2": st.integers(1, 6),
    "iterations": st.integers(1, 5),
    "biased": st.booleans(),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=60)
@given(scale=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 5.0, 1e3, 1e6]), **SIZES)
def test_routing_follows_the_equations(
    batch, capsules, classes, d1, d2, iterations, biased, seed, scale
):
    u, weight, bias = drawn(seed, batch, capsules, classes, d1, d2, scale=scale, biased=biased)
    v = dynamic_routing(u, weight, bias, iterations)
    assert v.shape == (batch, classes, d2)
    torch.testing.assert_close(
        v, routed_slowly(u, weight, bias, iterations), rtol=1e-7, atol=1e-12 if scale < 1 else 1e-8
    )


@settings(max_examples=25)
@given(scale=st.sampled_from([1e-20, 1e-3, 1.0]), **SIZES)
@example(3, 256, 10, 8, 16, 3, True, 0, 0.3)
def test_single_precision_is_close_enough(
    batch, capsules, classes, d1, d2, iterations, biased, seed, scale
):
    u, weight, bias = drawn(seed, batch, capsules, classes, d1, d2, scale=scale, biased=biased)
    narrow = [None if tensor is None else tensor.float() for tensor in (u, weight, bias)]
    single = dynamic_routing(*narrow, iterations)
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), routed_slowly(u, weight, bias, iterations), rtol=1e-3, atol=2e-5
    )


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e15])
def test_extreme_inputs_stay_finite_in_single_precision(scale):
    u, weight, bias = drawn(0, 2, 6, 4, 8, 16, scale=scale, dtype=torch.float32)
    v = dynamic_routing(u, weight, bias, 3)
    lengths = v.norm(dim=-1)
    assert torch.isfinite(v).all() and (lengths <= 1 + 1e-6).all()


def test_more_iterations_change_the_result_and_three_are_the_default():
    u, weight, bias = drawn(0, 2, 6, 4, 3, 5)
    one, two, three = (dynamic_routing(u, weight, bias, n) for n in (1, 2, 3))
    assert not torch.allclose(one, two, atol=1e-4) and not torch.allclose(two, three, atol=1e-4)
    assert torch.equal(dynamic_routing(u, weight, bias), three)


def test_agreement_wins():
    # Capsules 0 and 1 vote the same for class 0 and opposite for class 1: class 0 must gain.
    u = torch.ones(1, 2, 1)
    weight = torch.tensor([[[[1.0]], [[1.0]]], [[[1.0]], [[-1.0]]]])
    first = dynamic_routing(u, weight, iterations=1)[0, :, 0]
    third = dynamic_routing(u, weight, iterations=3)[0, :, 0]
    assert first[0] == pytest.approx(0.5, abs=1e-5) and first[1] == 0
    assert third[0] > first[0] and third[1] == 0


def test_samples_do_not_touch_each_other_and_nan_passes_through():
    u, weight, bias = drawn(1, 3, 6, 4, 3, 5)
    whole = dynamic_routing(u, weight, bias)
    for n in range(3):
        alone = dynamic_routing(u[n : n + 1], weight, bias)
        torch.testing.assert_close(whole[n : n + 1], alone)
    u[1, 2, 0] = torch.nan
    broken = dynamic_routing(u, weight, bias)
    assert broken[1].isnan().all()
    torch.testing.assert_close(broken[[0, 2]], whole[[0, 2]])


@settings(max_examples=30)
@given(**SIZES)
def test_gradients_are_those_of_the_last_iteration(
    batch, capsules, classes, d1, d2, iterations, biased, seed
):
    u, weight, bias = drawn(seed, batch, capsules, classes, d1, d2, biased=biased)
    probe = drawn(seed + 1, batch, classes, 1, d2, 1)[0]
    inputs = [t.requires_grad_() for t in (u, weight, bias) if t is not None]
    expected = torch.autograd.grad(
        (routed_slowly(u, weight, bias, iterations) * probe).sum(), inputs
    )
    got = torch.autograd.grad((dynamic_routing(u, weight, bias, iterations) * probe).sum(), inputs)
    for ours, slow in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_one_iteration_is_the_numerical_one():
    u, weight, bias = (t.requires_grad_() for t in drawn(3, 2, 3, 4, 2, 3))
    assert torch.autograd.gradcheck(lambda *t: dynamic_routing(*t, 1), (u, weight, bias))


def test_gradients_at_zero_exist():
    u = torch.zeros(2, 3, 4, requires_grad=True)
    weight = torch.zeros(5, 3, 4, 6, requires_grad=True)
    dynamic_routing(u, weight).sum().backward()
    assert torch.isfinite(u.grad).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("batch", "iterations"), [(0, 3), (1, 1), (3, 4)])
def test_the_operator_is_the_function(batch, iterations, biased):
    u, weight, bias = drawn(0, batch, 6, 4, 3, 5, biased=biased, dtype=torch.float32)
    arguments = (u, weight, bias, iterations, 1e-6)
    result = torch.ops.capsprune.dynamic_routing(*arguments)
    assert torch.equal(result, dynamic_routing(*arguments))
    outcome = torch.library.opcheck(
        dynamic_routing_op, arguments, test_utils=("test_schema", "test_faketensor")
    )
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("u", "weight", "bias", "iterations", "named"),
    [
        ((2, 6), (4, 6, 3, 5), None, 3, "[2, 6]"),
        ((2, 6, 3), (4, 6, 3), None, 3, "[4, 6, 3]"),
        ((2, 6, 3), (4, 7, 3, 5), None, 3, "[4, 7, 3, 5]"),
        ((2, 6, 3), (4, 6, 2, 5), None, 3, "[4, 6, 2, 5]"),
        ((2, 6, 3), (4, 6, 3, 5), (5, 4), 3, "[5, 4]"),
        ((2, 6, 3), (4, 6, 3, 5), (5,), 3, "[5]"),
        ((2, 6, 3), (4, 6, 3, 5), None, 0, "0"),
    ],
)
def test_misfits_are_named(u, weight, bias, iterations, named):
    tensors = [None if shape is None else torch.zeros(shape) for shape in (u, weight, bias)]
    with pytest.raises(ValueError) as error:
        dynamic_routing(*tensors, iterations)
    assert named in str(error.value)


def test_whole_numbers_are_refused():
    u, weight = torch.ones(2, 6, 3).long(), torch.ones(4, 6, 3, 5).long()
    with pytest.raises(ValueError, match=r"floating-point numbers, not torch\.int64"):
        dynamic_routing(u, weight)
