import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.stem import image_channels
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.linear_head import LinearNetwork
from capsprune.capsules.primary.names import PRIMARIES
from capsprune.checkpoint import (
    Blueprint,
    DataDescription,
    describe,
    load_checkpoint,
    read_architecture,
    save_checkpoint,
)
from capsprune.data.preprocessing import Preprocessing
from capsprune.errors import CheckpointError
from capsprune.files import parse_json
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups

DATA = DataDescription(
    name="digits",
    class_names=("a", "b", "c"),
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def network_of(name, fraction, head, iterations=2, **sizes):
    """A network of random weights that is pruned unevenly."""
    torch.manual_seed(0)
    arguments = backbone_arguments(name, 32)
    model = build_backbone(name, 3, **arguments).eval()
    groups = find_groups(model, classifier=backbone(name).classifier, image_size=32)
    generator = np.random.default_rng(0)
    channels = np.array([group.channels for group in groups.groups])
    removed = (channels * generator.uniform(0, fraction, len(channels))).astype(int)
    model = prune_channels(
        model, groups, l1_ranking(model, groups), np.maximum(channels - removed, 1)
    )
    trunk = trunk_of(name, model)
    width, size = trunk_output(trunk, 32)
    if head == "linear":
        model = LinearNetwork(trunk, channels=width, classes=3)
    elif head == "capsules":
        sizes = {"d1": 8, "d2": 4, "iterations": iterations} | sizes
        model = CapsuleNetwork(trunk, channels=width, feature_size=size, classes=3, **sizes)
    colours = image_channels(model)
    data = DATA.model_copy(update={"mean": (0.5,) * colours, "std": (0.5,) * colours})
    architecture = describe(
        model, Blueprint(name, arguments, data), parent="p", metrics={"accuracy": 0.5}
    )
    return model.eval(), architecture


def outputs(network, images):
    with torch.no_grad():
        result = network(images)
    return [result] if isinstance(result, torch.Tensor) else list(result)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"]),
    fraction=st.floats(0.05, 0.8),
    head=st.sampled_from([None, "capsules", "linear"]),
)
def test_any_pruned_shape_comes_back(tmp_path_factory, name, fraction, head):
    network, architecture = network_of(name, fraction, head)
    directory = tmp_path_factory.mktemp("c") / "checkpoint"
    save_checkpoint(directory, network, architecture, [{"epoch": 0}, {"epoch": 1}])
    loaded = load_checkpoint(directory)
    assert loaded.architecture == architecture
    state, state_again = network.state_dict(), loaded.network.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[key], state_again[key]) for key in state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(outputs(network, images), outputs(loaded.network, images), strict=True):
        # Where in memory a weight begins decides how some layers add up.
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5 * float(ours.abs().max()))
    kind = {"capsules": "dynamic"}.get(head, head)
    assert getattr(loaded.architecture.head, "kind", None) == kind
    with torch.no_grad():
        assert loaded.trunk(images).dim() == 4
    assert not loaded.network.training
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1]


@pytest.mark.parametrize("primary", PRIMARIES)
def test_a_network_whose_head_was_pruned_comes_back(tmp_path, primary):
    name = "capsnet" if primary == "spatial" else "mobilenet_v1"
    network, described = network_of(name, 0.8, "capsules", primary=primary)
    groups = find_capsule_groups(network, 32)
    kept = np.maximum(groups.channels // 3, 1)
    rankings = [torch.arange(count).flip(0) for count in groups.channels]
    slim = prune_channels(network, groups, rankings, kept).eval()
    architecture = describe(slim, described.blueprint, parent="p", metrics={})
    save_checkpoint(tmp_path / "slim", slim, architecture)
    loaded = load_checkpoint(tmp_path / "slim").network
    assert type(loaded.primary_caps) is type(slim.primary_caps)
    assert loaded.output_caps.iterations == slim.output_caps.iterations
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, image_channels(slim), 32, 32, generator=generator)
    for ours, theirs in zip(outputs(slim, images), outputs(loaded, images), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)
    assert loaded.output_caps.weight.shape[1] < network.output_caps.weight.shape[1]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    network, architecture = network_of("mobilenet_v1", 0.8, "capsules")
    directory = tmp_path_factory.mktemp("good") / "checkpoint"
    save_checkpoint(directory, network, architecture)
    return directory


@pytest.fixture
def damaged(good, tmp_path):
    return shutil.copytree(good, tmp_path / "checkpoint")


@pytest.mark.parametrize("tag", [{}, {"kind": "capsules"}])
def test_a_capsule_head_of_before_there_was_a_table_is_read(damaged, tag):
    file = damaged / "architecture.json"
    content = json.loads(file.read_text())
    assert content["format"] == 1
    content["head"] = {"feature_size": 2, "d1": 8, "d2": 4, "iterations": 2, **tag}
    file.write_text(json.dumps(content))
    loaded = load_checkpoint(damaged)
    assert loaded.architecture.head.kind == "dynamic"
    assert isinstance(loaded.network, CapsuleNetwork)


def test_a_head_of_an_unknown_kind_is_named(damaged):
    file = damaged / "architecture.json"
    content = json.loads(file.read_text())
    content["head"]["kind"] = "dinamic"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="nknown head 'dinamic'; did you mean dynamic"):
        load_checkpoint(damaged)


def test_a_linear_layer_that_is_missing_is_named(tmp_path):
    network, architecture = network_of("mobilenet_v1", 0.8, "linear")
    save_checkpoint(tmp_path / "checkpoint", network, architecture)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    state = load_file(weights)
    del state["classifier.weight"]
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"Missing key.*classifier\.weight"):
        load_checkpoint(tmp_path / "checkpoint")


def test_what_is_loaded_can_be_trained(good):
    network = load_checkpoint(good).network
    before = network.output_caps.weight.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    network(torch.randn(4, 3, 32, 32)).class_probabilities.sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not torch.equal(network.output_caps.weight, before)


def test_nothing_is_left_of_a_checkpoint_that_could_not_be_written(tmp_path, monkeypatch):
    network, architecture = network_of("mobilenet_v1", 0.8, None)

    def rows():
        yield {"epoch": 0}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "checkpoint", network, architecture, rows())
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_checkpoint_holds_what_json_does_not_know(tmp_path):
    network, architecture = network_of("mobilenet_v1", 0.8, None)
    nan = float("nan")
    architecture = architecture.model_copy(update={"metrics": {"accuracy": 0.5, "loss": nan}})
    rows = [{"epoch": 0, "train_loss": nan}, {"epoch": 1, "train_loss": float("inf")}]
    save_checkpoint(tmp_path / "checkpoint", network, architecture, rows)
    assert read_architecture(tmp_path / "checkpoint").metrics == {"accuracy": 0.5, "loss": None}
    lines = (tmp_path / "checkpoint" / "metrics.jsonl").read_text().splitlines()
    assert [parse_json(line)["train_loss"] for line in lines] == [None, None]


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1])
def test_cut_weights_are_refused(damaged, size):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"truncated.*make the checkpoint anew"):
        load_checkpoint(damaged)


def test_a_tensor_too_few_too_many_or_of_another_shape(damaged):
    state = load_file(damaged / "model.safetensors")
    key = "output_caps.weight"
    for changed in (
        {k: v for k, v in state.items() if k != key},
        state | {"extra": torch.zeros(1)},
        state | {key: state[key][:2].clone()},
    ):
        save_file(changed, damaged / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit its architecture"):
            load_checkpoint(damaged)


def test_capsule_layers_that_are_missing_are_named(damaged):
    state = load_file(damaged / "model.safetensors")
    del state["primary_caps.conv.weight"]
    save_file(state, damaged / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing key.*primary_caps\.conv\.weight"):
        load_checkpoint(damaged)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), "resnet5"),
        (("format",), 2),
        (("head", "kind"), "quadratic"),
        (("head", "kind"), "linear"),
        (("head",), []),
        (("head", "d1"), "eight"),
        (("head", "d1"), 0),
        (("head", "d2"), 5),
        (("head", "iterations"), -1),
        (("head", "feature_size"), 3),
        (("arguments",), {"depth": 3}),
        (("channels", "conv1"), {}),
        (("channels",), {"no.such.layer": {"out": 3}}),
        (("channels", "bn1", "out"), 10**12),
        (("channels", "bn1", "out"), -1),
        (("data", "image_size"), "big"),
        (("data", "class_names"), []),
        (("data", "class_names"), ["x" * 10**6, "y"]),
        (("data", "class_names"), [str(n) for n in range(200_000)]),
        (("data", "image_size"), 16),
        (("data", "image_size"), 64),
        (("data", "image_size"), 10**6),
        (("data", "image_size"), 10**9),
        (("data", "image_size"), 10**30),
        (("data", "mean"), [0.5, 0.5]),
        (("data", "mean"), [0.5]),
        (("data", "mean"), []),
        (("data", "mean"), [1e308, 0.5, 0.5]),
        (("data", "mean"), [float("nan"), 0.5, 0.5]),
        (("head", "iterations"), 10**9),
        (("head", "d1"), 10**9),
        (("head", "kind"), "spiral"),
        (("head", "kind"), ["capsules"]),
        (("arguments", "stem_stride"), 0),
        (("arguments", "stem_stride"), -1),
        (("arguments", "stem_stride"), 3),
        (("arguments", "stem_stride"), 10**30),
        (("arguments", "progress"), 1),
        (("channels", "conv1", "out"), 10**30),
        (("channels", "conv1", "up"), 3),
        (("channels",), {}),
        (("channels",), []),
        (("metrics",), {"accuracy": 1e308}),
        (("metrics",), [1]),
        (("id",), "x" * 10**6),
        (("parent",), 5),
    ],
)
def test_a_description_that_does_not_fit_is_refused(damaged, path, value):
    file = damaged / "architecture.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(damaged)
    assert str(damaged) in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700 + len(str(damaged))


def test_places_where_there_is_no_checkpoint(tmp_path, damaged):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("nowhere", "check the path"),
        ("file", "is a file"),
        ("empty", "no architecture.json"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_architecture(tmp_path / place)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_checkpoint(damaged)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 10**6, b"null", b"[1]"])
def test_a_description_that_is_none_is_refused(damaged, content):
    (damaged / "architecture.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        read_architecture(damaged)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_become_single(damaged, dtype):
    state = load_file(damaged / "model.safetensors")
    changed = {k: v.to(dtype) if v.is_floating_point() else v.int() for k, v in state.items()}
    save_file(changed, damaged / "model.safetensors")
    network = load_checkpoint(damaged).network
    for key, value in network.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, changed[key].to(value.dtype))
    network(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (
            "trunk.conv1.weight",
            lambda v: v.to(torch.int8),
            "conv1.* as int8, where float32",
        ),
        ("trunk.bn1.num_batches_tracked", lambda v: v.double(), "as float64, where int64 is due"),
        (
            "trunk.conv1.weight",
            lambda v: v * float("nan"),
            "not finite .* in trunk.conv1",
        ),
        ("output_caps.weight", lambda v: v.double() * 1e300, "not finite .* in output_caps"),
        ("trunk.bn1.running_var", lambda v: v + float("inf"), "not finite .* in trunk"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_by_name(damaged, key, change, said):
    state = load_file(damaged / "model.safetensors")
    assert key in state
    save_file(state | {key: change(state[key])}, damaged / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(damaged)


def test_a_description_says_how_images_are_shown():
    assert DATA.preprocessing == Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    cubic = DATA.model_copy(update={"interpolation": "bicubic"})
    again = DataDescription.model_validate_json(cubic.model_dump_json())
    assert again.preprocessing.interpolation == "bicubic"
    older = DATA.model_dump(exclude={"interpolation"})
    assert DataDescription.model_validate(older) == DATA
