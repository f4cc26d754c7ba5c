"""The ONNX routing function against the paper's equations, written out slowly in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from capsprune.capsules import dynamic_routing
from capsprune.capsules.onnx_op import OPSETS
from capsprune.capsules.routing_op import routing_function, routing_model
from capsprune.errors import ExportError
from capsprune.export.ort import onnxruntime


def routed_slowly(u, weight, bias, iterations, epsilon=1e-6):
    """Equations (1) to (4), vote by vote."""
    batch, capsules, _ = u.shape
    classes, _, _, d2 = weight.shape
    out = np.zeros((batch, classes, d2))
    for n in range(batch):
        votes = np.zeros((capsules, classes, d2))
        for i in range(capsules):
            for j in range(classes):
                votes[i, j] = u[n, i].astype(np.float64) @ weight[j, i].astype(np.float64)
        logits = np.zeros((capsules, classes))
        for _ in range(iterations):
            for j in range(classes):
                s = np.zeros(d2) if bias is None else bias[j].astype(np.float64)
                for i in range(capsules):
                    exponentials = np.exp(logits[i] - logits[i].max())
                    s = s + exponentials[j] / exponentials.sum() * votes[i, j]
                squared = s @ s
                out[n, j] = squared / (1 + squared) * s / np.sqrt(squared + epsilon)
            for i in range(capsules):
                for j in range(classes):
                    logits[i, j] += votes[i, j] @ out[n, j]
    return out


def run(model, u):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"u": u})[0]


def drawn(seed, batch, classes, capsules, d1, d2, scale=0.5):
    rng = np.random.default_rng(seed)
    u = rng.normal(0, scale, (batch, capsules, d1)).astype(np.float32)
    weight = rng.normal(0, scale, (classes, capsules, d1, d2)).astype(np.float32)
    bias = rng.normal(0, scale, (classes, d2)).astype(np.float32)
    return u, weight, bias


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 4),
    classes=st.integers(1, 5),
    capsules=st.integers(1, 7),
    d1=st.integers(1, 8),
    d2=st.integers(1, 9),
    iterations=st.integers(1, 5),
    with_bias=st.booleans(),
    opset=st.sampled_from(list(OPSETS)),
)
def test_function_follows_the_equations(
    seed, batch, classes, capsules, d1, d2, iterations, with_bias, opset
):
    u, weight, bias = drawn(seed, batch, classes, capsules, d1, d2)
    given_bias = bias if with_bias else None
    model = routing_model(weight, given_bias, iterations, opset)
    v = run(model, u)
    assert v.dtype == np.float32
    assert v.shape == (batch, classes, d2)
    np.testing.assert_allclose(v, routed_slowly(u, weight, given_bias, iterations), atol=2e-5)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("opset", list(OPSETS))
def test_every_opset_passes_the_checker_and_the_reference_evaluator(opset, with_bias):
    u, weight, bias = drawn(1, 3, 4, 6, 8, 16)
    bias = bias if with_bias else None
    model = routing_model(weight, bias, 3, opset)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import} == {"": opset, "capsprune": 1}
    expected = routed_slowly(u, weight, bias, 3)
    np.testing.assert_allclose(
        ReferenceEvaluator(model).run(None, {"u": u})[0], expected, atol=1e-5
    )
    np.testing.assert_allclose(
        run(onnx.inliner.inline_local_functions(model), u), expected, atol=1e-5
    )


def test_equals_the_pytorch_routing():
    u, weight, bias = (torch.from_numpy(a) for a in drawn(2, 5, 10, 27, 8, 16, scale=0.3))
    v = run(routing_model(weight, torch.nn.Parameter(bias), 3), u.numpy())
    np.testing.assert_allclose(v, dynamic_routing(u, weight, bias, 3).numpy(), atol=1e-6)


def test_large_logits_do_not_overflow():
    u, weight, bias = drawn(3, 2, 3, 4, 8, 16, scale=30.0)
    v = run(routing_model(weight, bias, 3), u)
    assert np.isfinite(v).all()
    np.testing.assert_allclose(v, routed_slowly(u, weight, bias, 3), atol=1e-4)


def test_epsilon_is_the_nodes():
    u, weight, bias = drawn(4, 2, 3, 4, 2, 3, scale=0.1)
    v = run(routing_model(weight, bias, 2, epsilon=0.5), u)
    np.testing.assert_allclose(v, routed_slowly(u, weight, bias, 2, epsilon=0.5), atol=1e-6)


def test_the_node_says_what_a_kernel_needs():
    model = routing_model(np.zeros((2, 3, 4, 5)), np.zeros((2, 5)), iterations=4)
    (node,) = model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.domain, node.op_type) == ("capsprune", "DynamicRouting")
    assert attributes == {"iterations": 4, "epsilon": pytest.approx(1e-6)}
    assert list(node.input) == ["u", "weight", "bias"]
    assert [
        d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim
    ] == [
        "batch",
        3,
        4,
    ]


def test_no_votes_and_one_softmax_less_than_iterations():
    function = routing_function(3)
    kinds = [node.op_type for node in function.node]
    assert kinds.count("Exp") == 2
    assert kinds.count("MatMul") == 3 + 2
    assert all(node.name.startswith("DynamicRouting/") for node in function.node)
    assert {node.domain for node in function.node} == {""}


def test_without_bias_there_is_no_such_input():
    function = routing_function(1, has_bias=False)
    assert list(function.input) == ["u", "weight"]
    assert all("bias" not in name for node in function.node for name in node.input)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="iterations"):
        routing_function(0)
    with pytest.raises(ExportError, match="18 to 23"):
        routing_function(3, opset=17)
    with pytest.raises(ValueError, match=r"weight must be \[J, I, D1, D2\]"):
        routing_model(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"bias must be \[J, D2\]"):
        routing_model(np.zeros((2, 3, 4, 5)), np.zeros((5, 2)))
