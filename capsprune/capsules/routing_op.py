"""The ONNX op `capsprune::DynamicRouting` as a function of standard ONNX ops.

A runtime that has a kernel for the op runs the kernel; any other one inlines the function that the
file carries. ONNX functions can neither loop over an attribute cheaply nor branch on an absent
input portably, so a body is written for the number of iterations and for the inputs, with or
without bias, of the file that carries it.

The body holds one value for each (j, i) with I innermost: votes `u_i @ weight[j, i]` are never
formed (see `capsprune.capsules.routing`), the products with `c_ij` run over I contiguous values,
and the softmax's division is applied to u, which is J times smaller. On a CPU this took half the
time of the same steps with D1 innermost and ONNX's Softmax.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper
from onnx.defs import OpSchema
from torch import Tensor

from capsprune.capsules.onnx_op import (
    DOMAIN,
    DOMAIN_VERSION,
    IR_VERSION,
    OnnxOperator,
    check_opset,
)
from capsprune.capsules.routing import SQUASH_EPSILON

OP_TYPE = "DynamicRouting"


def routing_function(
    iterations: int = 3,
    epsilon: float = SQUASH_EPSILON,
    *,
    has_bias: bool = True,
    opset: int = 18,
) -> onnx.FunctionProto:
    """Write `DynamicRouting(u, weight[, bias]) -> v` in standard ONNX ops.

    u is [batch, I, D1], weight is [J, I, D1, D2], bias is [J, D2], v is [batch, J, D2], all
    float32. A node's attribute `iterations` must be the one given here: the body is unrolled. Its
    attribute `epsilon` may be any. Every node of the body is named `DynamicRouting/...`, by which
    it is found in a profile.

    Args:
        iterations: routing iterations, at least 1; the attribute's default too.
        epsilon: the default of the attribute.
        has_bias: whether the function has the input `bias`.
        opset: version of the standard ops.

    Raises:
        ValueError: if `iterations` is below 1.
        ExportError: if the opset is not supported.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}.")
    check_opset(opset)
    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        inputs=["u", "weight", "bias"] if has_bias else ["u", "weight"],
        outputs=["v"],
        nodes=_body(iterations, has_bias),
        opset_imports=[helper.make_opsetid("", opset)],
        attributes=[],
        attribute_protos=[
            helper.make_attribute("iterations", iterations),
            helper.make_attribute("epsilon", float(epsilon)),
        ],
        doc_string="Routing by agreement between capsules (Sabour et al. 2017).",
    )


def routing_model(
    weight: ArrayLike | Tensor,
    bias: ArrayLike | Tensor | None = None,
    iterations: int = 3,
    opset: int = 18,
    *,
    epsilon: float = SQUASH_EPSILON,
) -> onnx.ModelProto:
    """Make the model of one `DynamicRouting` node: u [batch, I, D1] -> v [batch, J, D2].

    Args:
        weight: [J, I, D1, D2], an initialiser of the model.
        bias: [J, D2], an initialiser of the model, or None.
        iterations: routing iterations, at least 1.
        opset: version of the standard ops.
        epsilon: added under the square root of the squash.

    Raises:
        ValueError: if the shapes do not fit each other, or `iterations` is below 1.
        ExportError: if the opset is not supported.
    """
    arrays = {"weight": _float32(weight)}
    if arrays["weight"].ndim != 4:
        raise ValueError(f"weight must be [J, I, D1, D2], not {list(arrays['weight'].shape)}.")
    classes, capsules, d1, d2 = arrays["weight"].shape
    if bias is not None:
        arrays["bias"] = _float32(bias)
        if arrays["bias"].shape != (classes, d2):
            raise ValueError(f"bias must be [J, D2] of weight, not {list(arrays['bias'].shape)}.")
    function = routing_function(iterations, epsilon, has_bias=bias is not None, opset=opset)
    node = helper.make_node(
        OP_TYPE,
        ["u", *arrays],
        ["v"],
        name=OP_TYPE,
        domain=DOMAIN,
        iterations=iterations,
        epsilon=float(epsilon),
    )
    graph = helper.make_graph(
        [node],
        "routing",
        [helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, ["batch", capsules, d1])],
        [helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, ["batch", classes, d2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(
        graph,
        functions=[function],
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
        ],
        ir_version=IR_VERSION,
        producer_name="capsprune",
    )


def _routing_ops(
    u: Any, weight: Any, bias: Any, iterations: int, epsilon: float, all_gradients: bool = False
) -> Any:
    """Translate `torch.ops.capsprune.dynamic_routing` to standard ops."""
    from onnxscript import opset18

    del all_gradients  # A file has no gradients.
    values = {"u": u, "weight": weight, "bias": bias}
    for node in _body(iterations, bias is not None):
        attributes = {
            attribute.name: epsilon
            if attribute.ref_attr_name
            else helper.get_attribute_value(attribute)
            for attribute in node.attribute
        }
        op = getattr(opset18, node.op_type)
        values[node.output[0]] = op(*(values[name] for name in node.input), **attributes)
    return values["v"]


@functools.cache
def _node_maker() -> Any:
    """Make what writes a node of the op."""
    from onnxscript import values

    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[
            parameter("u", "T"),
            parameter("weight", "T"),
            parameter("bias", "T", param_option=optional),
        ],
        outputs=[parameter("v", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            attribute("iterations", OpSchema.AttrType.INT, required=True),
            attribute("epsilon", OpSchema.AttrType.FLOAT, required=True),
        ],
    )
    return values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), OP_TYPE, schema)


def _routing_node(
    u: Any, weight: Any, bias: Any, iterations: int, epsilon: float, all_gradients: bool = False
) -> Any:
    """Translate `torch.ops.capsprune.dynamic_routing` to one node.

    One iteration is a matrix product and a squash, which need no kernel of ours.
    """
    del all_gradients  # A file has no gradients.
    if iterations == 1:
        return _routing_ops(u, weight, bias, iterations, epsilon)
    return _node_maker()(u, weight, bias, iterations=iterations, epsilon=epsilon)


def _function_of(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    iterations = next(a.i for a in node.attribute if a.name == "iterations")
    return routing_function(iterations, has_bias=len(node.input) == 3, opset=opset)


def _float32(values: ArrayLike | Tensor) -> NDArray[np.float32]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


class _Nodes:
    """Collects nodes; each is named after the one value that it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, output: str, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = f"{OP_TYPE}/{output}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def ints(self, output: str, values: Sequence[int]) -> str:
        """Append a constant vector of int64."""
        return self.add(output, "Constant", value_ints=list(values))

    def attribute(self, output: str, name: str) -> str:
        """Append a constant: the function's attribute of type float."""
        self.add(output, "Constant", value_float=0.0)
        constant = self.nodes[-1].attribute[0]
        constant.ClearField("f")
        constant.ref_attr_name = name
        return output


def _body(iterations: int, has_bias: bool) -> list[onnx.NodeProto]:
    """Nodes from u, weight and bias to v; sums s and poses v_t inside are [J, batch, D2]."""
    body = _Nodes()
    add = body.add
    for axis in range(3):
        body.ints(f"axis_{axis}", [axis])
    body.ints("minus_one", [-1])
    add("one", "Constant", value_float=1.0)
    body.attribute("squash_epsilon", "epsilon")

    # Sizes come from the weight's shape: constants, once the weight is one.
    add("J", "Shape", "weight", start=0, end=1)
    add("I", "Shape", "weight", start=1, end=2)
    add("D1", "Shape", "weight", start=2, end=3)
    add("D2", "Shape", "weight", start=3, end=4)
    add("D1_I", "Mul", "D1", "I")
    add("shape_matrices", "Concat", "J", "D1_I", "D2", axis=0)
    add("shape_flat", "Concat", "minus_one", "D1_I", axis=0)
    add("shape_scaled", "Concat", "J", "minus_one", "D1_I", axis=0)
    add("shape_back", "Concat", "J", "minus_one", "D1", "I", axis=0)
    add("classes", "Cast", "J", to=onnx.TensorProto.FLOAT)

    add("weight_by_d1", "Transpose", "weight", perm=[0, 2, 1, 3])
    add("matrices", "Reshape", "weight_by_d1", "shape_matrices")  # [J, D1*I, D2]
    if iterations > 1:
        add("matrices_back", "Transpose", "matrices", perm=[0, 2, 1])  # [J, D2, D1*I]
    if has_bias:
        add("bias_rows", "Unsqueeze", "bias", "axis_1")  # [J, 1, D2]
    add("u_by_d1", "Transpose", "u", perm=[0, 2, 1])  # [batch, D1, I]

    # The first coupling coefficients are all 1 / J: no softmax, and one matrix for all classes.
    add("u_flat", "Reshape", "u_by_d1", "shape_flat")
    scaled = add("scaled_1", "Div", "u_flat", "classes")
    logits = ""
    for t in range(1, iterations + 1):
        if t > 1:
            logits = _agreement(body, t, logits)
            scaled = _scaled_by_coupling(body, t, logits)
        total = add(f"votes_{t}", "MatMul", scaled, "matrices")
        if has_bias:
            total = add(f"s_{t}", "Add", total, "bias_rows")
        _squash(body, t, total)
    add("v", "Transpose", f"v_{iterations}", perm=[1, 0, 2])
    return body.nodes


def _agreement(body: _Nodes, t: int, logits: str) -> str:
    """Logits [J, batch, 1, I] after the poses of iteration t - 1."""
    add = body.add
    add(f"back_flat_{t}", "MatMul", f"v_{t - 1}", "matrices_back")
    add(f"back_{t}", "Reshape", f"back_flat_{t}", "shape_back")
    add(f"back_u_{t}", "Mul", f"back_{t}", "u_by_d1")
    agreement = add(f"agreement_{t}", "ReduceSum", f"back_u_{t}", "axis_2", keepdims=1)
    return add(f"logits_{t}", "Add", logits, agreement) if logits else agreement


def _scaled_by_coupling(body: _Nodes, t: int, logits: str) -> str:
    """`c_ij u_i`, [J, batch, D1*I]: softmax over J, whose division is left to u."""
    add = body.add
    add(f"largest_{t}", "ReduceMax", logits, "axis_0", keepdims=1)
    add(f"shifted_{t}", "Sub", logits, f"largest_{t}")
    add(f"exp_{t}", "Exp", f"shifted_{t}")
    add(f"exp_sum_{t}", "ReduceSum", f"exp_{t}", "axis_0", keepdims=0)  # [batch, 1, I]
    add(f"u_divided_{t}", "Div", "u_by_d1", f"exp_sum_{t}")
    add(f"coupled_{t}", "Mul", f"exp_{t}", f"u_divided_{t}")
    return add(f"scaled_{t}", "Reshape", f"coupled_{t}", "shape_scaled")


def _squash(body: _Nodes, t: int, s: str) -> str:
    add = body.add
    add(f"norm2_{t}", "ReduceSumSquare", s, "minus_one", keepdims=1)
    add(f"norm2_epsilon_{t}", "Add", f"norm2_{t}", "squash_epsilon")
    add(f"norm_{t}", "Sqrt", f"norm2_epsilon_{t}")
    add(f"one_norm2_{t}", "Add", f"norm2_{t}", "one")
    # Two divisions: the product of the denominators could overflow where neither does.
    add(f"part_{t}", "Div", f"norm2_{t}", f"one_norm2_{t}")
    add(f"factor_{t}", "Div", f"part_{t}", f"norm_{t}")
    return add(f"v_{t}", "Mul", s, f"factor_{t}")


ROUTING = OnnxOperator(
    op_type=OP_TYPE,
    target=torch.ops.capsprune.dynamic_routing.default,
    node=_routing_node,
    standard=_routing_ops,
    function=_function_of,
)
