"""Files written by `write_onnx`, and what happens when one cannot be."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import capsprune
from capsprune.capsules import CapsuleNetwork, OutputCaps
from capsprune.capsules.primary import DensePrimaryCaps
from capsprune.errors import ExportError
from capsprune.export import translations, write_onnx
from capsprune.export.ort import onnxruntime
from capsprune.export.part_names import read_parts

SIZE = 16
NAMES = ["cat", "dog", "Zürich", "ship", "frog"]


def trunk():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    )


def capsule_network(**options):
    torch.manual_seed(0)
    network = CapsuleNetwork(
        trunk(), channels=16, feature_size=SIZE // 4, classes=len(NAMES), **options
    )
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
        network.output_caps.weight.mul_(10)
    return network


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(NAMES)))


def images(count=20, seed=1):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def export(network, path, **options):
    arguments = {
        "image_size": SIZE,
        "class_names": NAMES,
        "images": images(),
        "metadata": {"normalisation": '{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}'},
    }
    return write_onnx(network, path, **{**arguments, **options})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "deep" / "model.onnx"
    network = capsule_network()
    return network, path, export(network, path)


def test_report_describes_the_file(exported):
    _, path, report = exported
    content = path.read_bytes()
    assert report.path == path
    assert report.bytes == len(content)
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    assert report.inputs == {"image": ["batch", 3, SIZE, SIZE]}
    assert report.outputs == {"class_probabilities": ["batch", 5], "poses": ["batch", 5, 16]}
    assert report.max_abs_difference <= 1e-4
    assert report.top1_agreement == 1.0
    assert (report.opset, report.batches, report.images) == (18, (1, 2, 17), 60)
    assert report.nodes == len(onnx.load(path).graph.node)
    assert report.operators == ("DynamicRouting",)
    assert report.seconds > 0
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_file_computes_the_network_on_other_images(exported):
    network, path, _ = exported
    others = images(9, seed=2)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probabilities, poses = session.run(None, {"image": others.numpy()})
    network.eval()
    with torch.no_grad():
        expected = network(others)
    torch.testing.assert_close(
        torch.from_numpy(probabilities), expected.class_probabilities, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.from_numpy(poses), expected.poses, atol=1e-5, rtol=0)


def test_file_runs_in_the_reference_evaluator(exported):
    network, path, _ = exported
    few = images(3, seed=3)
    probabilities, _ = ReferenceEvaluator(onnx.load(path)).run(None, {"image": few.numpy()})
    with torch.no_grad():
        expected = network.eval()(few).class_probabilities
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-4, rtol=0)


def test_routing_is_one_node_with_a_function(exported):
    model = onnx.load(exported[1])
    (node,) = [n for n in model.graph.node if n.domain == "capsprune"]
    assert node.op_type == "DynamicRouting"
    assert len(node.input) == 3
    assert {a.name for a in node.attribute} == {"iterations", "epsilon"}
    assert [(f.domain, f.name) for f in model.functions] == [("capsprune", "DynamicRouting")]
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "capsprune": 1}


def test_batch_norms_are_folded(exported):
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(exported[1]).graph.node}


def test_metadata(exported):
    model = onnx.load(exported[1])
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["class_names"]) == NAMES
    assert metadata["image_size"] == str(SIZE)
    assert metadata["capsprune_version"] == capsprune.__version__
    assert json.loads(metadata["normalisation"])["std"] == [0.25, 0.25, 0.25]
    assert (model.producer_name, model.producer_version) == ("capsprune", capsprune.__version__)


def test_names_tell_the_part_of_the_network(exported):
    model = onnx.load(exported[1])
    parts = [node.name.partition("/")[0] for node in model.graph.node]
    assert list(dict.fromkeys(parts)) == ["trunk", "primary_caps", "output_caps"]
    assert read_parts({p.key: p.value for p in model.metadata_props}) == list(dict.fromkeys(parts))
    outputs = {output.name for output in model.graph.output}
    for node, part in zip(model.graph.node, parts, strict=True):
        assert all(name in outputs or name.startswith(f"{part}/") for name in node.output)
    weights = {weight.name for weight in model.graph.initializer}
    assert {"network.output_caps.weight", "network.primary_caps.conv.bias"} <= weights


@pytest.mark.parametrize("text", [None, "{", "3", "[1, 2]"])
def test_a_file_may_name_no_parts(text):
    assert read_parts({} if text is None else {"parts": text}) == []


def test_file_holds_no_source_paths(exported):
    content = exported[1].read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_same_network_gives_the_same_bytes(exported, tmp_path):
    network, path, _ = exported
    export(network, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_inlined_file_needs_no_domain_of_ours(exported, tmp_path):
    network, path, _ = exported
    report = export(network, tmp_path / "inline.onnx", inline=True)
    model = onnx.load(tmp_path / "inline.onnx")
    assert [o.domain for o in model.opset_import] == [""]
    assert {n.domain for n in model.graph.node} == {""}
    assert len(model.functions) == 0
    assert any("DynamicRouting" in n.name for n in model.graph.node)
    assert report.inline
    feed = {"image": images(4).numpy()}
    ours, theirs = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for p in (path, tmp_path / "inline.onnx")
    )
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs))


def test_network_comes_back_as_it_was(tmp_path):
    network = capsule_network()
    network.train()
    network.freeze_trunk()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = [id(p) for p in network.parameters()]
    export(network, tmp_path / "model.onnx")
    assert [module.training for module in network.modules()] == modes
    assert [id(p) for p in network.parameters()] == parameters
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())


def test_classifier_gets_a_softmax_and_no_poses(tmp_path):
    network = classifier()
    report = export(network, tmp_path / "plain.onnx", images=images(3))
    assert report.outputs == {"class_probabilities": ["batch", 5]}
    model = onnx.load(tmp_path / "plain.onnx")
    assert len(model.functions) == 0
    assert [o.domain for o in model.opset_import] == [""]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (probabilities,) = session.run(None, {"image": images(2).numpy()})
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("opset", [19, 23])
def test_other_opsets_and_iterations(tmp_path, opset):
    report = export(capsule_network(iterations=2), tmp_path / "model.onnx", opset=opset)
    assert report.opset == opset
    versions = {o.domain: o.version for o in onnx.load(tmp_path / "model.onnx").opset_import}
    assert versions == {"": opset, "capsprune": 1}


def test_capsules_without_bias(tmp_path):
    network = capsule_network()
    network.output_caps.bias = None
    export(network, tmp_path / "model.onnx")
    (function,) = onnx.load(tmp_path / "model.onnx").functions
    assert list(function.input) == ["u", "weight"]


class RoutesThrice(nn.Module):
    """Two capsule layers with other numbers of iterations, and a third like the first."""

    def __init__(self):
        super().__init__()
        self.trunk = trunk()
        self.primary_caps = DensePrimaryCaps(16, SIZE // 4, 8)
        self.layers = nn.Sequential(
            OutputCaps(2, 6, 8, 8, iterations=2),
            OutputCaps(6, 4, 8, 8, iterations=3),
            OutputCaps(4, 5, 8, 4, iterations=2),
        )

    def forward(self, x):
        return self.layers(self.primary_caps(self.trunk(x))).norm(dim=-1)


def test_several_kinds_of_routing_go_into_one_file(tmp_path):
    torch.manual_seed(0)
    network = RoutesThrice().eval()
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.mul_(10)
    report = export(network, tmp_path / "model.onnx")
    assert report.max_abs_difference < 1e-4
    model = onnx.load(tmp_path / "model.onnx")
    names = [node.op_type for node in model.graph.node if node.domain == "capsprune"]
    assert names == ["DynamicRouting", "DynamicRouting_2", "DynamicRouting"]
    assert [f.name for f in model.functions] == ["DynamicRouting", "DynamicRouting_2"]
    few = images(3)
    (probabilities,) = ReferenceEvaluator(model).run(None, {"image": few.numpy()})
    with torch.no_grad():
        expected = network(few).softmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-4, rtol=0)


def test_one_iteration_needs_no_operator_of_ours(tmp_path):
    network = capsule_network(iterations=1)
    report = export(network, tmp_path / "model.onnx")
    assert report.max_abs_difference < 1e-4
    model = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [o.domain for o in model.opset_import] == [""]


class OtherwiseWhenExported(nn.Module):
    """Computes something else while it is exported, as a faulty translation would."""

    def __init__(self):
        super().__init__()
        self.network = classifier()

    def forward(self, x):
        logits = self.network(x)
        return logits * 1.1 if torch.compiler.is_exporting() else logits


def test_file_that_differs_is_not_kept(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"what was there before")
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        export(OtherwiseWhenExported(), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there before"


class DependsOnValues(nn.Module):
    """Branches on what it is given, which no graph can express."""

    def forward(self, x):
        return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))


def test_network_that_cannot_be_exported_leaves_nothing(tmp_path):
    with pytest.raises(ExportError, match="could not export the network to ONNX opset 18") as error:
        export(DependsOnValues(), tmp_path / "model.onnx", class_names=["a", "b", "c"])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17 is not supported"),
        ({"class_names": ["a", "b"]}, "5 classes, but 2 class names"),
        ({"image_size": 32}, r"must be \[n, 3, 32, 32\], not \[20, 3, 16, 16\]"),
        ({"images": torch.zeros(0, 3, SIZE, SIZE)}, "must be"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export(classifier(), tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        export(classifier(), tmp_path / "file" / "model.onnx")


def test_export_is_quiet(tmp_path, capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(capsule_network(), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []
    assert logging.root.manager.disable == logging.NOTSET


class InsideAnother(nn.Module):
    """A user's own network that a capsule network is a part of."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images * 0.5).class_probabilities.argmax(dim=1)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_user_s_own_export_works(tmp_path, wrapped, dynamo):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU())
    network = CapsuleNetwork(trunk, channels=16, feature_size=4, classes=5, iterations=2).eval()
    network = InsideAnother(network).eval() if wrapped else network
    path = tmp_path / "own.onnx"
    names = ["out"] if wrapped else ["probabilities", "poses"]
    if dynamo:
        options = {
            "custom_translation_table": translations(),
            "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        }
    else:
        options = {"dynamic_axes": {name: {0: "batch"} for name in ("image", *names)}}
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 16, 16),),
        path,
        dynamo=dynamo,
        input_names=["image"],
        output_names=names,
        verbose=False,
        **options,
    )
    images = torch.randn(5, 3, 16, 16)
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        expected = network(images)
    for ours, theirs in zip((expected,) if wrapped else expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    # No op library and no function: any runtime reads it.
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
