"""Graphs made of those of other networks compute what their own networks do."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from capsprune.backbones.registry import backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.export.onnx_file import draft_onnx, draft_weights
from capsprune.pipeline.prunable import Prunable
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.target import Target
from capsprune.runtime import latency
from capsprune.runtime.latency import LatencyMeter, network_latency
from capsprune.runtime.sessions import session
from capsprune.runtime.template import GraphTemplate, TemplateError


def exported(channels, *, groups=None, flat=None, op="Relu", scale=1.0):
    """A depthwise convolution and a flatten, as an exporter might write them, and its weights."""
    weights = {"scale": torch.rand(7), "conv.weight": torch.rand(channels, 1, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["a"], group=groups or channels),
        helper.make_node(op, ["a"], ["b"]),
        helper.make_node("Constant", [], ["shape"], value_ints=[1, flat or channels * 4]),
        helper.make_node("Reshape", ["b", "shape"], ["out"]),
    ]
    nodes.append(helper.make_node("Constant", [], ["unused"], value_float=scale))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, "channels", 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()],
    )
    return helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]
    ), weights


def test_numbers_follow_the_sizes_of_the_nearest_weight():
    template = GraphTemplate()
    for channels in (8, 6):
        assert not template.ready
        template.learn(*exported(channels))
    model, weights = exported(5)
    filled = template.fill(weights)
    image = {"image": np.random.default_rng(0).random((1, 5, 4, 4), np.float32)}
    expected = session(model.SerializeToString()).run(None, image)
    actual = session(filled.SerializeToString()).run(None, image)
    assert actual[0].shape == (1, 20)
    np.testing.assert_array_equal(actual, expected)
    assert template.fill(exported(8)[1]).graph.node[0].attribute[0].i == 8


def test_a_rule_holds_for_all_exports_seen():
    template = GraphTemplate()
    # The second has as many numbers as one of the weight that does not explain them.
    template.learn(*exported(7, flat=28))
    template.learn(*exported(14, flat=56))
    template.learn(*exported(3, flat=12))
    assert template.fill(exported(4)[1]).graph.node[2].attribute[0].ints == [1, 16]


@pytest.mark.parametrize(
    "change", [{"op": "Sigmoid"}, {"scale": 2.0}, {"flat": 23}], ids=["node", "float", "number"]
)
def test_exports_that_differ_by_more_make_no_graph(change):
    template = GraphTemplate()
    template.learn(*exported(8))
    with pytest.raises(TemplateError):
        template.learn(*exported(6, **change))
    assert not template.ready
    with pytest.raises(TemplateError):
        template.fill(exported(5)[1])


def test_a_network_of_other_weights_has_no_graph():
    template = GraphTemplate()
    for channels in (8, 6):
        template.learn(*exported(channels))
    with pytest.raises(TemplateError):
        template.fill({"other.weight": torch.rand(5, 1, 3, 3)})


def capsules(*widths, activation=nn.ReLU):
    """A capsule network of a depthwise and a dense convolution."""
    first, second = widths
    trunk = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, first, 3, stride=2),
            depthwise=nn.Conv2d(first, first, 3, groups=first, bias=False),
            norm=nn.BatchNorm2d(first),
            activation=activation(),
            last=nn.Conv2d(first, second, 1),
        )
    )
    return CapsuleNetwork(
        trunk, channels=second, feature_size=trunk_output(trunk, 9)[1], classes=3, d1=4
    ).eval()


@torch.no_grad()
def difference(model, network, size):
    """The largest difference between the outputs of a graph and of the network."""
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    actual = session(model.SerializeToString()).run(None, {"image": image.numpy()})
    return max(
        np.abs(ours - theirs.numpy()).max()
        for ours, theirs in zip(actual, network(image), strict=True)
    )


def test_a_meter_exports_two_networks_and_no_more(monkeypatch):
    timed = []
    real = latency._milliseconds
    monkeypatch.setattr(latency, "_milliseconds", lambda *a: timed.append(a[0]) or real(*a))
    said = []
    meter = LatencyMeter(9, reference=capsules(16, 24), repeats=2, say=said.append)
    networks = [capsules(*widths) for widths in ((2, 4), (6, 13), (16, 24), (1, 9))]
    assert all(meter(network) > 0 for network in networks)
    assert meter.exports == 2 and not said
    for model, network in zip(timed, networks, strict=True):
        assert difference(model, network, 9) < 1e-4


def test_what_cannot_be_filled_in_is_exported_and_said_once():
    said = []
    meter = LatencyMeter(9, repeats=1, say=said.append)
    for activation in (nn.ReLU, nn.Tanh, nn.ReLU, nn.ReLU):
        assert meter(capsules(4, 8, activation=activation)) > 0
    assert meter.exports == 4
    assert len(said) == 1 and "one by one" in said[0]


def test_a_graph_that_does_not_run_is_exported_instead(capfd):
    said = []
    meter = LatencyMeter(9, repeats=1, say=said.append)
    # The first two do not show that the groups of the depthwise convolution depend on anything.
    for widths in ((4, 8), (4, 12), (6, 12), (2, 24)):
        assert meter(capsules(*widths)) > 0
    assert meter.exports == 3
    assert not said
    assert capfd.readouterr().err == ""


def test_a_network_alone_is_measured():
    assert network_latency(capsules(4, 8), 9, repeats=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v1", 32),
        ("resnet18", 32),
        ("mobilenet_v3_small", 32),
        ("regnet_x_400mf", 32),
        ("shufflenet_v2_x0_5", 64),
    ],
)
def test_graphs_of_pruned_backbones_compute_what_the_networks_do(name, size):
    torch.manual_seed(0)
    model = build_backbone(name, 10, **backbone_arguments(name, size)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    network = Prunable.of(name, model, size)
    rankings = l1_ranking(model, network.dependencies)
    space = Target().search_space(network.cost, 0.9, 8)

    def pruned(rates):
        kept = space.kept(np.broadcast_to(rates, space.groups))
        trunk = trunk_of(name, prune_channels(model, network.dependencies, rankings, kept))
        channels, feature_size = trunk_output(trunk, size)
        return CapsuleNetwork(
            trunk, channels=channels, feature_size=feature_size, classes=10
        ).eval()

    template = GraphTemplate()
    for rates in (0.0, space.max_rate):
        draft = draft_onnx(pruned(rates), size)
        template.learn(draft.model, draft.weights)
    generator = np.random.default_rng(0)
    for _ in range(3):
        candidate = pruned(generator.uniform(0, space.max_rate, space.groups))
        assert difference(template.fill(draft_weights(candidate)), candidate, size) < 1e-4
