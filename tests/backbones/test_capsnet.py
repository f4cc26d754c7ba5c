"""CapsNet's trunk, and what one colour channel changes on its way to an ONNX file."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from capsprune.backbones.registry import backbone, build_backbone
from capsprune.backbones.stem import blank_images, image_channels, stem_of
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.backbones.weights import initialise
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.heads import DYNAMIC, HEADS
from capsprune.checkpoint import (
    Blueprint,
    DataDescription,
    describe,
    load_checkpoint,
    save_checkpoint,
)
from capsprune.errors import CheckpointError, ExportError, StrategyError
from capsprune.export import write_onnx
from capsprune.export.ort import onnxruntime
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.target import Target
from capsprune.runtime.latency import network_latency
from capsprune.runtime.profile import Place, Timing, profile_variants

SIZE = 28
NAMES = [str(digit) for digit in range(10)]


def capsnet():
    torch.manual_seed(0)
    return build_backbone("capsnet", len(NAMES)).eval()


def described():
    shown = backbone("capsnet").preprocessing(SIZE)
    return DataDescription(
        name="digits", class_names=tuple(NAMES), image_size=SIZE, mean=shown.mean, std=shown.std
    )


def grey(count=4, seed=1):
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_trunk_is_that_of_the_paper():
    model = capsnet()
    trunk = trunk_of("capsnet", model)
    assert trunk_output(trunk, SIZE) == (256, 20)
    assert count_parameters(trunk) == 20_992
    assert count_macs(model, SIZE)["conv1"] == 8_294_400
    assert (trunk(grey()) >= 0).all()
    weight, bias = model.conv1.weight, model.conv1.bias
    # A normal distribution of 5e-2, cut off at two deviations, has .88 of that deviation.
    assert weight.std().item() == pytest.approx(0.88 * 5e-2, rel=0.02)
    assert weight.abs().max() <= 0.1 and (bias == 0.1).all()


def test_its_one_group_is_pruned_exactly():
    model = capsnet()
    dependencies = find_groups(model, classifier="linear", image_size=SIZE)
    assert [(group.name, group.channels) for group in dependencies.groups] == [("conv1", 256)]
    cost = CostModel.build(model, dependencies, SIZE)
    space = Target(flops=0.25).search_space(cost)
    (kept,) = space.kept(np.array([[0.75]]))
    pruned = prune_channels(model, dependencies, l1_ranking(model, dependencies), kept)
    assert pruned.conv1.out_channels == kept[0] == 64
    assert cost.parameters(kept) == count_parameters(pruned) == 64 * 82 + 64 * 10 + 10
    assert cost.macs(kept) == sum(count_macs(pruned, SIZE).values())


def test_more_than_it_has_cannot_be_pruned():
    model = capsnet()
    cost = CostModel.build(model, find_groups(model, classifier="linear", image_size=SIZE), SIZE)
    with pytest.raises(StrategyError, match="the least is"):
        Target(flops=0.001).search_space(cost)


def test_channels_are_those_of_the_first_convolution():
    assert image_channels(capsnet()) == 1
    assert image_channels(build_backbone("mobilenet_v1", 3)) == 3
    assert image_channels(nn.Linear(4, 2)) == 3 and stem_of(nn.Linear(4, 2)) is None
    assert image_channels(nn.Conv2d(64, 8, 3)) == 3
    images = blank_images(capsnet().double(), 12, 5)
    assert images.shape == (5, 1, 12, 12) and images.dtype == torch.float64


def test_a_checkpoint_of_one_channel_comes_back_and_says_so(tmp_path):
    model = capsnet()
    saved = describe(model, Blueprint("capsnet", {}, described()), parent=None, metrics={})
    save_checkpoint(tmp_path / "c", model, saved)
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.architecture.data.preprocessing.channels == 1
    assert torch.equal(loaded.network(grey()), model(grey()))
    # Channels that are not the network's are refused as what does not fit.
    file = tmp_path / "c" / "architecture.json"
    content = json.loads(file.read_text())
    content["data"].update(mean=[0.5] * 3, std=[0.5] * 3)
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="Invalid channel dimensions"):
        load_checkpoint(tmp_path / "c")


def test_weights_for_colours_are_refused(tmp_path):
    state = capsnet().state_dict()
    state["conv1.weight"] = state["conv1.weight"].repeat(1, 3, 1, 1)
    torch.save(state, tmp_path / "colours.pt")
    with pytest.raises(CheckpointError, match=r"3 channels, where capsnet takes 1; give .* grey"):
        initialise(capsnet(), "capsnet", str(tmp_path / "colours.pt"))


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    trunk = trunk_of("capsnet", build_backbone("capsnet", len(NAMES)))
    capsules = CapsuleNetwork(trunk, channels=256, feature_size=20, classes=len(NAMES), d1=64)
    return {"capsules": capsules.eval(), "linear": capsnet()}


@pytest.mark.parametrize("head", ["capsules", "linear"])
def test_a_file_for_grey_images_computes_the_same_and_is_profiled(tmp_path, networks, head):
    path = tmp_path / "model.onnx"
    report = write_onnx(
        networks[head], path, image_size=SIZE, class_names=NAMES, images=grey(8), metadata={}
    )
    assert report.inputs == {"image": ["batch", 1, SIZE, SIZE]}
    assert report.max_abs_difference < 1e-4 and report.top1_agreement == 1
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": grey(3).numpy()})[0].shape == (3, len(NAMES))
    (measured,) = profile_variants(
        {head: path},
        image_size=SIZE,
        place=Place("cpu", threads=1),
        timing=Timing(batches=(1,), repeats=2, warmup=1),
        folder=tmp_path,
    )
    assert measured.latency_ms > 0 and measured.peak_memory_mb is not None
    assert (measured.routing_kernel is None) == (head == "linear")


def test_latency_of_a_network_for_grey_images():
    assert network_latency(capsnet(), SIZE, provider="cpu", repeats=2, threads=1) > 0


def test_images_of_colours_do_not_verify_a_file_for_grey_ones(tmp_path):
    with pytest.raises(ExportError, match=r"must be \[n, 1, 28, 28\], not \[4, 3, 28, 28\]"):
        write_onnx(
            capsnet(),
            tmp_path / "model.onnx",
            image_size=SIZE,
            class_names=NAMES,
            images=grey().repeat(1, 3, 1, 1),
            metadata={},
        )


def test_it_is_capsnet_with_primary_capsules_that_keep_their_positions():
    trunk = trunk_of("capsnet", capsnet())
    network = CapsuleNetwork(
        trunk, channels=256, feature_size=20, classes=len(NAMES), primary="spatial"
    ).eval()
    assert network.primary_caps.capsules == 1152
    counts = [count_parameters(part) for part in (trunk, network.primary_caps, network.output_caps)]
    assert counts == [20_992, 5_308_672, 1_474_560 + 160]
    assert sum(counts) == count_parameters(network) == 6_804_384
    macs = count_macs(network, SIZE)
    head = {name: count for name, count in macs.items() if not name.startswith("trunk.")}
    parts = HEADS[DYNAMIC].costs(network, head).part_macs
    # The paper's figures end with the votes; three iterations of routing come on top.
    assert macs["trunk.conv1"] + parts["primary_caps"] + parts["output_caps"] == 200_871_936
    assert parts["routing"] == (2 * 3 - 1) * 1152 * 10 * 16
