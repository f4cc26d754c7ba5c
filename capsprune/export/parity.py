"""Does an ONNX file compute what the PyTorch network computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capsprune.errors import ExportError
from capsprune.export.ort import ERROR_SEVERITY, onnxruntime

#: The largest absolute difference between the outputs that passes.
TOLERANCE = 1e-4
#: One image, the batch that was traced, and an odd larger one.
BATCHES = (1, 2, 17)
#: Fewer images than this are repeated until there are as many.
MIN_IMAGES = 20


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from the network's, over all batches."""

    #: Largest absolute difference over all outputs and images; NaN where an output has one.
    max_abs_difference: float
    #: Share of the images for which both put the same class first, or PyTorch's two are as good as
    #: tied (less than `TOLERANCE` apart).
    top1_agreement: float
    #: Images compared, summed over the batches.
    images: int
    #: The batch sizes.
    batches: tuple[int, ...]


@torch.no_grad()
def measure_parity(
    model: Path | bytes,
    network: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    batches: Sequence[int] = BATCHES,
) -> Parity:
    """Run a file in ONNX Runtime on the CPU, and the network in PyTorch, on the same images.

    At each batch size every image is run once; the last batch is filled up from the first images.

    Args:
        model: the ONNX file or its content; its one input is a batch of images.
        network: maps images [batch, C, S, S] to the file's outputs in the file's order, the first
            of which is [batch, J]; in evaluation mode on the CPU.
        images: [n, C, S, S], normalised float32 on the CPU, n > 0.
        batches: the batch sizes.
    """
    count = max(len(images), MIN_IMAGES)
    images = images[torch.arange(count) % len(images)]
    expected = _in_batches(lambda batch: [o.numpy() for o in network(batch)], images, max(batches))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR_SEVERITY
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model,
        options,
        providers=["CPUExecutionProvider"],
    )
    name = session.get_inputs()[0].name

    def run(batch: Tensor) -> Sequence[NDArray[np.float32]]:
        return session.run(None, {name: batch.numpy()})

    differences: list[float] = []
    agreeing = 0
    for size in batches:
        actual = _in_batches(run, images, size)
        for ours, theirs in zip(actual, expected, strict=True):
            # A shape that differs must not be broadcast into one that fits.
            same_shape = ours.shape == theirs.shape
            differences.append(float(np.abs(ours - theirs).max()) if same_shape else float("inf"))
        if actual[0].shape == expected[0].shape:
            agreeing += _agreeing(actual[0], expected[0])
    compared = count * len(batches)
    return Parity(
        # np.max and not max(): a NaN must win.
        max_abs_difference=float(np.max(differences)),
        top1_agreement=agreeing / compared,
        images=compared,
        batches=tuple(batches),
    )


def require_parity(parity: Parity) -> None:
    """Accept a parity within `TOLERANCE` and with the same first class for every image.

    Raises:
        ExportError: otherwise, with what was measured.
    """
    if not parity.max_abs_difference <= TOLERANCE:  # NaN fails.
        raise ExportError(
            "The ONNX file's outputs differ from PyTorch's by up to "
            f"{parity.max_abs_difference:.3g} where {TOLERANCE:g} is allowed, so it was not kept; "
            "export with another --opset."
        )
    if parity.top1_agreement < 1:
        raise ExportError(
            f"The ONNX file puts PyTorch's class first for only {parity.top1_agreement:.1%} of the "
            f"{parity.images} images compared, so it was not kept; export with another --opset."
        )


def _in_batches(
    run: Callable[[Tensor], Sequence[NDArray[np.float32]]], images: Tensor, size: int
) -> list[NDArray[np.float32]]:
    """Every output of all images, run in batches of exactly `size`."""
    parts: list[Sequence[NDArray[np.float32]]] = []
    for start in range(0, len(images), size):
        wrapped = torch.arange(start, start + size) % len(images)
        parts.append(run(images[wrapped]))
    return [np.concatenate(output)[: len(images)] for output in zip(*parts, strict=True)]


def _agreeing(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    rows = np.arange(len(expected))
    gap = expected.max(axis=1) - expected[rows, actual.argmax(axis=1)]
    return int((gap < TOLERANCE).sum())
