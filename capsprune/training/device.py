"""Where training runs: Lightning Fabric, launched on a device that is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from capsprune.errors import DeviceError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def gpu_of(device: torch.device) -> int | None:
    """Return the number of a GPU; None for a CPU."""
    return (device.index or 0) if device.type == "cuda" else None


def gpu_number(device: str) -> int:
    """Return the number of the GPU that a device, as `make_fabric` takes it, would be; else 0."""
    _, _, number = device.partition("cuda:")
    return int(number) if number.isdecimal() else 0


def make_fabric(device: str = "auto", precision: str = "32-true") -> Fabric:
    """Launch Fabric on one device.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", or "cuda:N".
        precision: as Fabric names it.

    Raises:
        DeviceError: if the device is unknown or is not there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise DeviceError(f"'{device}' is no device; give --device auto, cpu, cuda or cuda:N.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match.group(1) or 0)
    if device.startswith("cuda") and index >= gpus:
        raise DeviceError(
            f"--device {device} needs a GPU that PyTorch can use, and there "
            f"{'is 1' if gpus == 1 else f'are {gpus}'}; give --device cpu."
        )
    from lightning_fabric import Fabric

    if gpus and device != "cpu":
        fabric = Fabric(accelerator="cuda", devices=[index], precision=precision)  # type: ignore[arg-type]
    else:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric
