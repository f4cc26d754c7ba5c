"""Verify backbones: groups, costs, channel pruning, head and ONNX file, and write a Markdown table.

For each backbone: how many dependency groups there are; the FLOPs that remain of a search for half
of them; whether the cost model agrees with fvcore on pruned networks, to the last MAC; how far the
pruned network is from the unpruned one with the same channels silenced; the primary capsules on
the pruned trunk; and how far the ONNX file is from PyTorch.

    python tools/verify_backbones.py [--image-size 64] [--markdown FILE] [BACKBONE ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from numpy.typing import NDArray
from torch import Tensor, nn

from capsprune.backbones.registry import BACKBONES, backbone, backbone_arguments, build_backbone
from capsprune.backbones.stem import blank_images, image_channels
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules import CapsuleNetwork
from capsprune.errors import CapspruneError
from capsprune.export import write_onnx
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel, count_macs, count_parameters
from capsprune.pruning.drawing import propose
from capsprune.pruning.groups import Dependencies, find_groups
from capsprune.pruning.masking import masked
from capsprune.pruning.target import Target

CLASSES = 10
STRATEGIES = 3
COLUMNS = (
    "backbone",
    "groups",
    "unprunable",
    "FLOPs at 50 %",
    "cost = fvcore",
    "pruned against masked",
    "primary capsules",
    "ONNX against PyTorch",
)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Set norms, biases and layer scales to values that tell channels apart, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                low = 0.5 if name.endswith(("weight", "running_var")) else -0.2
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + low)
            elif name.endswith("layer_scale"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def fvcore_macs(model: nn.Module, size: int) -> int:
    """MACs of convolutions and linear layers as fvcore counts them."""
    analysis = FlopCountAnalysis(model, blank_images(model, size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    return int(counts["conv"] + counts["linear"])


def random_order(dependencies: Dependencies, seed: int) -> list[Tensor]:
    """Units of each group in random order, so that no run of neighbours is what stays."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.channels, generator=generator) for group in dependencies.groups]


def from_masked(
    model: nn.Module,
    pruned: nn.Module,
    dependencies: Dependencies,
    order: list[Tensor],
    kept: NDArray[np.int64],
    images: Tensor,
) -> float:
    """Return how far a pruned network is from the unpruned one with the same channels silenced.

    Args:
        model: unpruned.
        pruned: the pruned one.
        dependencies: the groups.
        order: units of each group, those that stay first.
        kept: how many stay, [G].
        images: that both are shown.

    Returns:
        The largest difference, as a part of the largest output.

    Raises:
        CapspruneError: if silencing changes nothing.
    """
    masks = [torch.zeros(group.channels, dtype=torch.bool) for group in dependencies.groups]
    for mask, ranking, count in zip(masks, order, kept, strict=True):
        mask[ranking[: int(count)]] = True
    with torch.no_grad(), masked(model, dependencies, masks):
        expected = model(images)
    with torch.no_grad():
        actual, unmasked = pruned(images), model(images)
    if not (expected - unmasked).abs().max() > 1e-3 * unmasked.abs().max():
        raise CapspruneError("Masking changes nothing in this network, so it shows nothing.")
    return float((actual - expected).abs().max() / expected.abs().max())


def with_capsules(name: str, pruned: nn.Module, images: Tensor) -> tuple[int, float]:
    """Return how many capsules a pruned backbone gets, and how far its ONNX file is from it."""
    trunk = trunk_of(name, pruned)
    channels, feature_size = trunk_output(trunk, images.shape[-1])
    network = CapsuleNetwork(
        trunk, channels=channels, feature_size=feature_size, classes=CLASSES
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        report = write_onnx(
            network,
            Path(folder) / "model.onnx",
            image_size=images.shape[-1],
            class_names=[str(i) for i in range(CLASSES)],
            images=images,
            metadata={},
        ).to_dict()
    return network.primary_caps.capsules, float(report["max_abs_difference"])


def verify(name: str, size: int) -> dict[str, str]:
    """Verify one backbone.

    Args:
        name: of the backbone.
        size: pixels a side.

    Returns:
        What came out, by column.

    Raises:
        CapspruneError: if the backbone cannot be done.
    """
    size = max(size, backbone(name).smallest_image)
    torch.manual_seed(0)
    model = build_backbone(name, CLASSES, **backbone_arguments(name, size)).eval()
    randomise(model)
    dependencies = find_groups(model, classifier=backbone(name).classifier, image_size=size)
    cost = CostModel.build(model, dependencies, size)
    space = Target(flops=0.5).search_space(cost)
    shape = (2, image_channels(model), size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    exact, difference, ratios = True, 0.0, []
    for seed in range(STRATEGIES):
        kept = space.kept(propose(space, np.random.default_rng(seed)))
        ratios.append(float(cost.flops_ratio(kept)))
        order = random_order(dependencies, seed)
        pruned = prune_channels(model, dependencies, order, kept)
        exact &= int(cost.macs(kept)) == fvcore_macs(pruned, size)
        exact &= int(cost.macs(kept)) == sum(count_macs(pruned, size).values())
        exact &= int(cost.parameters(kept)) == count_parameters(pruned)
        difference = max(difference, from_masked(model, pruned, dependencies, order, kept, images))
    capsules, from_pytorch = with_capsules(name, pruned, images)
    return {
        "backbone": name,
        "groups": str(len(dependencies.groups)),
        "unprunable": str(len(dependencies.unprunable)),
        "FLOPs at 50 %": ", ".join(f"{100 * ratio:.1f}" for ratio in ratios) + " %",
        "cost = fvcore": "exact" if exact else "NO",
        "pruned against masked": f"{difference:.0e}",
        "primary capsules": str(capsules),
        "ONNX against PyTorch": f"{from_pytorch:.0e}",
    }


def main() -> int:
    """Verify what is asked for, or all backbones; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=list(BACKBONES), metavar="BACKBONE")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print(*lines, sep="\n", flush=True)
    failed = 0
    for name in arguments.backbones:
        started = time.perf_counter()
        try:
            row = verify(name, arguments.image_size)
        except CapspruneError as error:
            row = {"backbone": name, "groups": f"refused: {error}"}
            failed += 1
        else:
            close = float(row["pruned against masked"]) <= 1e-4
            failed += row["cost = fvcore"] != "exact" or not close
        lines.append("| " + " | ".join(row.get(column, "") for column in COLUMNS) + " |")
        print(lines[-1], flush=True)
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
