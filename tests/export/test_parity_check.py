"""The comparison of an ONNX file with what it was exported from."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from capsprune.errors import ExportError
from capsprune.export import Parity, measure_parity, require_parity


def added(values) -> bytes:
    """A model: image [batch, 3] -> image + values."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "values"], ["class_probabilities"])],
        "added",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("class_probabilities", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(values, np.float32), "values")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


IMAGES = torch.eye(3)


def test_equal_outputs_agree_at_every_batch():
    parity = measure_parity(added([0, 0, 0]), lambda x: (x,), IMAGES)
    assert parity == Parity(0.0, 1.0, images=60, batches=(1, 2, 17))
    require_parity(parity)


def test_network_is_compared_image_by_image():
    sizes = []

    def network(images):
        sizes.append(len(images))
        return (images,)

    parity = measure_parity(added([0, 0, 0.5]), network, torch.rand(25, 3), batches=(1, 17))
    assert parity.max_abs_difference == pytest.approx(0.5, abs=1e-6)
    assert parity.images == 50
    assert set(sizes) == {17}


def test_difference_is_refused():
    parity = measure_parity(added([0, 0, 2e-4]), lambda x: (x,), IMAGES)
    with pytest.raises(ExportError, match=r"differ from PyTorch's by up to 0\.0002"):
        require_parity(parity)


def test_nan_is_refused():
    parity = measure_parity(added([0, math.nan, 0]), lambda x: (x,), IMAGES)
    assert math.isnan(parity.max_abs_difference)
    with pytest.raises(ExportError, match="nan"):
        require_parity(parity)


def test_other_shape_is_refused():
    parity = measure_parity(added([0, 0, 0]), lambda x: (x[:, :1],), IMAGES)
    assert parity.max_abs_difference == math.inf


def test_near_ties_are_no_disagreement():
    tied = torch.tensor([[0.5, 0.5, 0.0]])
    parity = measure_parity(added([0, 9e-5, 0]), lambda x: (x,), tied)
    assert parity.top1_agreement == 1.0
    require_parity(parity)


def test_another_first_class_is_refused_though_close():
    apart = torch.tensor([[0.5, 0.5 - 1.5e-4, 0.0]])
    parity = measure_parity(added([-9e-5, 9e-5, 0]), lambda x: (x,), apart)
    assert parity.max_abs_difference < 1e-4
    assert parity.top1_agreement == 0.0
    with pytest.raises(ExportError, match=r"first for only 0\.0%"):
        require_parity(parity)
