"""`torch.ops.capsprune.dynamic_routing`, with the C++ kernels and without them."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_library import require_library

from capsprune import native
from capsprune.capsules import dynamic_routing
from capsprune.capsules.routing import SQUASH_EPSILON, dynamic_routing_op
from capsprune.runtime import meters


def plain(u, weight, bias, iterations, epsilon=SQUASH_EPSILON):
    """Equations (1) to (4) with every vote kept; all iterations carry gradients."""
    votes = torch.einsum("nid,jidk->nijk", u, weight)
    logits = torch.zeros(votes.shape[:3], dtype=u.dtype)
    for _ in range(iterations):
        s = torch.einsum("nij,nijk->njk", torch.softmax(logits, dim=2), votes)
        s = s if bias is None else s + bias
        squared = (s * s).sum(dim=-1, keepdim=True)
        v = squared / (1 + squared) * s / torch.sqrt(squared + epsilon)
        logits = logits + torch.einsum("nijk,njk->nij", votes, v)
    return v


def drawn(seed, batch, capsules, classes, d1, d2, *, biased=True, dtype=torch.float32, scale=0.5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u, weight = scale * normal(batch, capsules, d1), 0.3 * normal(classes, capsules, d1, d2)
    return u, weight, 0.3 * normal(classes, d2) if biased else None


@pytest.fixture(params=["avx512", "avx2", "neon", "baseline"])
def instruction_set(request):
    require_library()
    if not native.use_instruction_set(request.param):
        pytest.skip(f"{request.param} is not in this processor or this build of the library")
    yield request.param
    native.use_instruction_set(None)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setenv("CAPSPRUNE_NATIVE", "0")
    assert native.library_path() is None


SIZES = {
    "batch": st.integers(0, 37),
    "capsules": st.integers(1, 40),
    "classes": st.integers(1, 12),
    "d1": st.integers(1, 10),
    "d2": st.integers(1, 33),
    "iterations": st.integers(1, 10),
    "biased": st.booleans(),
    "seed": st.integers(0, 1000),
}


def check_parity(batch, capsules, classes, d1, d2, iterations, biased, seed):
    u, weight, bias = drawn(seed, batch, capsules, classes, d1, d2, biased=biased)
    inputs = [t for t in (u, weight, bias) if t is not None]
    wide = [t.double().requires_grad_() for t in inputs]
    expected = dynamic_routing(*wide, iterations=iterations)
    truth = plain(*wide, *([] if biased else [None]), iterations)
    torch.testing.assert_close(expected, truth, rtol=1e-9, atol=1e-12)
    got = dynamic_routing(*(t.requires_grad_() for t in inputs), iterations=iterations)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)
    probe = drawn(seed + 1, batch, classes, 1, d2, 1)[0]
    ours = torch.autograd.grad(got, inputs, probe)
    for one, other in zip(ours, torch.autograd.grad(expected, wide, probe.double()), strict=True):
        scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-4, atol=2e-5)


# One fixture serves all the examples: nothing in it changes between them.
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**SIZES)
@example(batch=17, capsules=33, classes=10, d1=8, d2=16, iterations=3, biased=True, seed=0)
@example(batch=0, capsules=5, classes=4, d1=8, d2=16, iterations=3, biased=True, seed=0)
@example(batch=1, capsules=1, classes=1, d1=1, d2=1, iterations=1, biased=False, seed=0)
def test_every_instruction_set_agrees_with_double_precision(instruction_set, **sizes):
    assert native.instruction_set() == instruction_set
    check_parity(**sizes)


def test_without_the_library_the_results_are_the_same(without_library):
    for seed in range(6):
        check_parity(2 * seed, 9, 4, 5, 6, 1 + seed, seed % 2 == 0, seed)


@pytest.mark.parametrize("with_library", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e4, 1e12])
def test_huge_and_tiny_inputs(monkeypatch, with_library, scale):
    if with_library:
        require_library()
    else:
        monkeypatch.setenv("CAPSPRUNE_NATIVE", "0")
    for batch in (1, 17):
        u, weight, bias = drawn(0, batch, 6, 4, 8, 16, scale=scale)
        v = dynamic_routing(u, weight, bias)
        assert torch.isfinite(v).all() and (v.norm(dim=-1) <= 1 + 1e-6).all()
        if scale < 1:
            truth = plain(u.double(), weight.double(), bias.double(), 3)
            torch.testing.assert_close(v.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 16, 20])
def test_nan_stays_with_its_sample(instruction_set, batch):
    u, weight, bias = drawn(1, batch, 6, 4, 8, 16)
    whole = dynamic_routing(u, weight, bias)
    u[batch - 1, 2, 3] = torch.nan
    broken = dynamic_routing(u, weight, bias)
    assert broken[-1].isnan().all()
    torch.testing.assert_close(broken[:-1], whole[:-1], rtol=0, atol=0)


@pytest.mark.parametrize("all_gradients", [False, True])
@pytest.mark.parametrize(("iterations", "biased"), [(1, True), (2, False), (4, True)])
def test_gradients_through_all_iterations_are_those_of_plain_autograd(
    iterations, biased, all_gradients
):
    inputs = drawn(3, 3, 5, 4, 3, 6, biased=biased, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    v = dynamic_routing(*inputs, iterations, all_gradients=all_gradients)
    probe = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((plain(*inputs, iterations) * probe).sum(), leaves)
    got = torch.autograd.grad((v * probe).sum(), leaves)
    same = all(
        torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(got, expected, strict=False)
    )
    assert same == (all_gradients or iterations == 1)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 2, 3), (1, 1, 1, 1, 1), (3, 1, 5, 3, 1)])
def test_gradcheck(sizes, iterations):
    inputs = [t.requires_grad_() for t in drawn(4, *sizes, dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *t: dynamic_routing(*t, iterations, all_gradients=True), inputs
    )


def test_only_the_gradients_asked_for_are_made():
    u, weight, bias = drawn(5, 18, 7, 4, 8, 16)
    full = [t.clone().requires_grad_() for t in (u, weight, bias)]
    expected = torch.autograd.grad(dynamic_routing(*full).sum(), full)
    for n in range(3):
        some = [t.clone().requires_grad_(n == m) for m, t in enumerate((u, weight, bias))]
        (one,) = torch.autograd.grad(dynamic_routing(*some).sum(), some[n])
        torch.testing.assert_close(one, expected[n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("batch", "iterations", "all_gradients"), [(3, 3, False), (17, 2, True)])
def test_opcheck(dtype, biased, batch, iterations, all_gradients):
    inputs = drawn(0, batch, 6, 4, 3, 5, biased=biased, dtype=dtype)
    leaves = [None if t is None else t.requires_grad_() for t in inputs]
    outcome = torch.library.opcheck(
        dynamic_routing_op, (*leaves, iterations, 1e-6, all_gradients), atol=1e-2, rtol=1e-2
    )
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(dtype):
    u, weight, bias = drawn(6, 4, 9, 5, 8, 16, dtype=dtype)
    v = dynamic_routing(u, weight, bias)
    assert v.dtype == dtype
    single = dynamic_routing(u.float(), weight.float(), bias.float())
    torch.testing.assert_close(v, single.to(dtype), rtol=0, atol=1e-3)


def test_autocast_takes_mixed_inputs_and_gives_single_precision():
    u, weight, bias = drawn(6, 4, 9, 5, 8, 16)
    u = u.bfloat16()
    leaves = [t.requires_grad_() for t in (u, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = dynamic_routing(*leaves)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, dynamic_routing(u.float(), weight, bias))
    v.sum().backward()
    assert u.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    with pytest.raises(ValueError, match=r"bfloat16 on cpu and .*float32 on cpu; convert"):
        dynamic_routing(u, weight, bias)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, weight, bias = drawn(7, 1, 9, 5, 8, 16)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, u):
        return dynamic_routing(u.relu(), self.weight, self.bias)


def test_torch_export_keeps_one_node_for_any_batch():
    layer = Layer()
    program = torch.export.export(
        layer, (torch.randn(3, 9, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.capsprune.dynamic_routing.default) == 1
    assert len(called) == 2
    for batch in (1, 20):
        u = torch.randn(batch, 9, 8)
        torch.testing.assert_close(program.module()(u), layer(u))


def test_torch_compile_keeps_one_node_and_its_gradient():
    seen = []

    def backend(module, inputs):
        seen.append([n.target for n in module.graph.nodes if n.op == "call_function"])
        return module.forward

    layer = Layer()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    u = torch.randn(3, 9, 8, requires_grad=True)
    compiled(u).sum().backward()
    ours, u.grad = u.grad, None
    layer(u).sum().backward()
    torch.testing.assert_close(ours, u.grad)
    (targets,) = seen
    assert sum("dynamic_routing" in str(target) for target in targets) == 1


def test_several_threads_at_once():
    cases = [drawn(n, 5 + 6 * n, 30, 7, 8, 16) for n in range(4)]
    expected = [dynamic_routing(*case) for case in cases]
    wrong = []

    def work(n):
        for _ in range(20):
            if not torch.allclose(dynamic_routing(*cases[n]), expected[n], rtol=0, atol=1e-6):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_of_its_own_give_the_same(monkeypatch):
    require_library()
    inputs = drawn(8, 33, 30, 7, 8, 16)
    expected = dynamic_routing(*inputs)
    monkeypatch.setattr(native, "_openmp", lambda: None)
    torch.testing.assert_close(dynamic_routing(*inputs), expected, rtol=1e-6, atol=1e-6)


def test_layouts_that_are_not_contiguous():
    u, weight, bias = drawn(9, 5, 6, 4, 8, 16)
    expected = dynamic_routing(u, weight, bias)
    strided = (
        u.transpose(0, 1).contiguous().transpose(0, 1),
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        bias.t().contiguous().t(),
    )
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(dynamic_routing(*strided), expected, rtol=0, atol=0)
    got = torch.autograd.grad(
        dynamic_routing(*(t.requires_grad_() for t in strided)).sum(), strided
    )
    plainly = [t.requires_grad_() for t in (u, weight, bias)]
    for one, other in zip(
        got, torch.autograd.grad(dynamic_routing(*plainly).sum(), plainly), strict=False
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("with_library", [True, False])
def test_memory_of_a_training_step_does_not_grow_with_the_iterations(monkeypatch, with_library):
    if with_library:
        require_library()
    else:
        monkeypatch.setenv("CAPSPRUNE_NATIVE", "0")
    if not meters.reset_peak_resident():
        pytest.skip("this system cannot measure a peak twice")
    leaves = [t.requires_grad_() for t in drawn(10, 32, 64, 50, 8, 16)]

    def extra(iterations):
        meters.reset_peak_resident()
        before = meters.resident_mb()
        torch.autograd.grad(dynamic_routing(*leaves, iterations).sum(), leaves)
        return meters.peak_resident_mb() - before

    extra(2)
    # The votes of one iteration are 6.6 MB: kept, they would take 53 MB more.
    assert extra(10) < extra(2) + 20
