from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from capsprune.capsules import CapsuleNetwork
from capsprune.export import write_onnx

SIZE = 16


def _trunk(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 16, 3, stride=2, padding=1),
        nn.ReLU(),
    )


def _write(network: nn.Module, path: Path, **options) -> Path:
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    write_onnx(
        network,
        path,
        image_size=SIZE,
        class_names=list("abcde"),
        images=images,
        metadata={},
        **options,
    )
    return path


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory) -> dict[str, Path]:
    """Tiny exported networks: with the routing node, with it inlined, and without routing."""
    directory = tmp_path_factory.mktemp("variants")
    torch.manual_seed(0)
    capsules = CapsuleNetwork(_trunk(8), channels=16, feature_size=SIZE // 4, classes=5)
    plain = nn.Sequential(_trunk(8), nn.Flatten(), nn.Linear(16 * (SIZE // 4) ** 2, 5))
    return {
        "caps": _write(capsules, directory / "caps.onnx"),
        "inlined": _write(capsules, directory / "inlined.onnx", inline=True),
        "plain": _write(plain, directory / "plain.onnx"),
    }
