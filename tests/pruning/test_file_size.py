"""Bytes of the exported file from channel counts, against files that were really written."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunables import JoinedTrunk, capsule_network, random_order

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.backbones.trunk import trunk_of
from capsprune.errors import StrategyError
from capsprune.export import write_onnx
from capsprune.export.onnx_file import file_content
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel
from capsprune.pruning.drawing import propose
from capsprune.pruning.file_size import FileSize, format_bytes, parse_bytes
from capsprune.pruning.groups import find_groups
from capsprune.pruning.target import Target

METADATA = {"model": "toy", "checkpoint": "0" * 64, "accuracy": "0.9876543209876543"}
CLASSES = ["left", "right", "neither"]


def trained(network):
    """Tell all values apart, as training would: equal tensors are written once."""
    generator = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand(tensor.shape, generator=generator)
    return network.eval()


def exported(network, size, tmp_path):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return write_onnx(
        network,
        tmp_path / "model.onnx",
        image_size=size,
        class_names=CLASSES,
        images=images,
        metadata=METADATA,
    ).bytes


def sized(network, dependencies, size, order):
    cost = CostModel.build(network, dependencies, size, order)
    content = file_content(network, image_size=size, class_names=CLASSES, metadata=METADATA)
    return cost, FileSize.build(content, network, cost)


def capsules(kind, size=8, iterations=3):
    torch.manual_seed(0)
    options = {"types": 3} if kind == "spatial" else {"rank": 5} if kind == "factored" else {}
    trunk = JoinedTrunk(24, 24, 1 if kind == "spatial" else 2)
    network = capsule_network(
        trunk, size, primary=kind, d1=4, d2=8, iterations=iterations, **options
    )
    return trained(network), find_capsule_groups(network, size)


@pytest.mark.parametrize("kind", ["dense", "factored", "depthwise", "pointwise", "spatial"])
def test_files_of_capsule_networks(kind, tmp_path):
    size = 12 if kind == "spatial" else 8
    network, dependencies = capsules(kind, size)
    order = random_order(dependencies, 0)
    cost, file_size = sized(network, dependencies, size, order)
    indexed = kind in ("spatial", "pointwise")
    written = exported(network, size, tmp_path)
    spare = 512 + 8 * network.primary_caps.capsules if indexed else 0
    assert file_size.bytes(cost.channels) == written + spare
    for seed in range(2):
        kept = np.random.default_rng(seed).integers(1, cost.channels + 1)
        kept[-1] = 3  # iterations
        slim = prune_channels(network, dependencies, order, kept)
        written, computed = exported(slim, size, tmp_path), int(file_size.bytes(kept))
        assert written <= computed <= written + (700 if indexed else 150)
    kept[-1] = 1
    slim = prune_channels(network, dependencies, order, kept)
    # Without routing there is no function in the file.
    assert exported(slim, size, tmp_path) <= int(file_size.bytes(kept))


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v1",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
    ],
)
def test_files_of_backbones(name, tmp_path):
    torch.manual_seed(0)
    network = trained(build_backbone(name, 3, **backbone_arguments(name, 32)))
    dependencies = find_groups(network, classifier=backbone(name).classifier, image_size=32)
    order = random_order(dependencies, 0)
    cost, file_size = sized(network, dependencies, 32, order)
    assert file_size.bytes(cost.channels) == exported(network, 32, tmp_path)
    kept = np.random.default_rng(0).integers(1, cost.channels + 1)
    slim = prune_channels(network, dependencies, order, kept)
    written = exported(slim, 32, tmp_path)
    assert written <= file_size.bytes(kept) <= written + 1000


def test_no_strategy_of_a_file_size_has_a_larger_file(tmp_path):
    torch.manual_seed(0)
    model = build_backbone("mobilenet_v1", 3, **backbone_arguments("mobilenet_v1", 32))
    network = trained(capsule_network(trunk_of("mobilenet_v1", model), 32))
    dependencies = find_capsule_groups(network, 32)
    order = random_order(dependencies, 0)
    cost, file_size = sized(network, dependencies, 32, order)
    kinds = [group.kind for group in dependencies.groups]
    limit = 2_000_000
    space = Target(file_size=limit).search_space(cost, kinds=kinds, file_size=file_size)
    assert space.describe() == "a file of at most 2 MB"
    for seed in range(8):
        kept = space.kept(propose(space, np.random.default_rng(seed)))
        assert 0.99 * limit <= file_size.bytes(kept) <= limit
    slim = prune_channels(network, dependencies, order, kept)
    assert exported(slim, 32, tmp_path) <= limit


def test_a_file_size_that_cannot_be_is_refused():
    network, dependencies = capsules("dense")
    cost, file_size = sized(network, dependencies, 8, random_order(dependencies, 0))
    kinds = [group.kind for group in dependencies.groups]

    def space(size, max_rate=None):
        Target(file_size=size).search_space(cost, max_rate, kinds=kinds, file_size=file_size)

    with pytest.raises(StrategyError, match=r"this network alone takes .* higher --file-s"):
        space(file_size.fixed)
    with pytest.raises(StrategyError, match=r"leaves a file of at most .* the least is .* kB"):
        space(file_size.fixed + 600, 0.1)
    with pytest.raises(StrategyError, match="less than what is asked for; give a lower --file-si"):
        space(10**8)
    with pytest.raises(StrategyError, match="cannot have 0 bytes"):
        Target(file_size=0).complete()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4MB", 4_000_000),
        ("500kB", 500_000),
        ("2MiB", 2 * 2**20),
        ("1.5 GB", 1_500_000_000),
        ("123456", 123_456),
        (" 7 b ", 7),
        ("3k", 3000),
        (".5MB", 500_000),
    ],
)
def test_bytes_are_read(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "MB", "-4MB", "4XB", "4 M B", "1e6", "nan", "٤MB", "4,5MB"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="such as 4MB"):
        parse_bytes(text)


@given(st.integers(0, 10**12))
def test_bytes_are_written_as_they_are_read(number):
    assert parse_bytes(format_bytes(number).replace("bytes", "b")) == pytest.approx(
        number, rel=5e-4
    )
