"""Meters of memory and energy. Where a meter is missing its reading is None, never 0.

A GPU is named by the number that CUDA gives it: N of "cuda:N".
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

#: Where Linux shows the energy counters of Intel's and AMD's processors (RAPL).
POWERCAP = Path("/sys/class/powercap")

#: Memory is in MB of 10^6 bytes everywhere.
BYTES_PER_MB = 1_000_000


def gpu_present(gpu: int = 0) -> bool:
    """Whether there is such an NVIDIA GPU that this process may use."""
    return _gpu(gpu) is not None


def gpu_memory_used_mb(gpu: int = 0) -> float | None:
    """Memory in use on a GPU by all processes, in MB."""
    return _gpu_reading(
        gpu, lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used / BYTES_PER_MB
    )


def gpu_energy_joules(gpu: int = 0) -> float | None:
    """Joules that a GPU has used since its driver was loaded."""
    return _gpu_reading(
        gpu,
        # From millijoules.
        lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
    )


def energy_joules(
    work: Callable[[], object], *, gpu: int | None, powercap: Path = POWERCAP
) -> float | None:
    """Do some work and return the joules that the device used meanwhile.

    Everything that the device does in that time is counted, its idle consumption too; the counters
    move many times a second, so the work should last a second or more.

    Args:
        work: called once, or not at all where there is no meter.
        gpu: which one to measure; None for the processors, all sockets together.
        powercap: directory of the processors' energy counters.
    """
    counter = EnergyCounter(gpu=gpu, powercap=powercap)
    if counter.joules is None:
        return None
    work()
    counter.read()
    return counter.joules


class EnergyCounter:
    """Joules that the device has used since the counter was made.

    A processor's own counter begins anew after some minutes of full load, so `read` has to be
    called now and then.
    """

    def __init__(self, *, gpu: int | None, powercap: Path = POWERCAP) -> None:
        """Begin to count.

        Args:
            gpu: which one to measure; None for the processors, all sockets together.
            powercap: directory of the processors' energy counters.
        """
        self._gpu = gpu
        self._packages = _cpu_packages(powercap) if gpu is None else []
        self._last = self._counts()
        #: None where there is no meter.
        self.joules: float | None = None if self._last is None else 0.0

    @property
    def meter(self) -> str:
        """What is read: "NVML" or "RAPL"."""
        return "RAPL" if self._gpu is None else "NVML"

    def read(self) -> None:
        """Add what was used since the last reading to `joules`."""
        if self.joules is None or self._last is None:
            return
        now = self._counts()
        if now is None:
            self.joules = None
            return
        for position, (before, after) in enumerate(zip(self._last, now, strict=True)):
            used = after - before
            if used < 0:  # The counter began anew.
                limit = None
                if self._gpu is None:
                    limit = _read_int(self._packages[position] / "max_energy_range_uj")
                if limit is None:
                    self.joules = None
                    return
                used += limit / 1e6
            self.joules += used
        self._last = now

    def _counts(self) -> list[float] | None:
        """Joules on each counter."""
        if self._gpu is not None:
            joules = gpu_energy_joules(self._gpu)
            return None if joules is None else [joules]
        counts = [_microjoules(package) for package in self._packages]
        if not counts or None in counts:
            return None
        return [count / 1e6 for count in counts if count is not None]


class TrainingMeter:
    """Peak memory and energy of a training in this process."""

    #: Seconds between two readings.
    INTERVAL = 10.0

    def __init__(self, *, gpu: int | None) -> None:
        """Begin to measure.

        Args:
            gpu: which one to measure, by NVML; None for this process's resident set, and RAPL.
        """
        self._gpu = gpu
        self._energy = EnergyCounter(gpu=gpu)
        self._peak: float | None = None
        self._next = 0.0
        # Where the system cannot begin anew, the peak is that of the whole process.
        if gpu is None:
            reset_peak_resident()

    def tick(self) -> None:
        """Read the meters, if the last reading is some time ago; call it after every step."""
        if time.monotonic() >= self._next:
            self._read()
            self._next = time.monotonic() + self.INTERVAL

    def summary(self) -> dict[str, Any]:
        """Read the meters for the last time.

        Returns:
            `peak_memory_mb` and what `memory_meter` measured it ("NVML": in use on the GPU, or
            "resident set"), `energy_joules` and `energy_meter`; None where there is no meter.
        """
        self._read()
        return {
            "peak_memory_mb": self._peak,
            "memory_meter": "resident set" if self._gpu is None else "NVML",
            "energy_joules": self._energy.joules,
            "energy_meter": None if self._energy.joules is None else self._energy.meter,
        }

    def _read(self) -> None:
        # torch keeps the GPU memory that it once took, so a reading now and then has the peak.
        now = peak_resident_mb() if self._gpu is None else gpu_memory_used_mb(self._gpu)
        if now is not None:
            self._peak = now if self._peak is None else max(self._peak, now)
        self._energy.read()


def resident_mb() -> float:
    """Memory of this process that is in RAM now, in MB."""
    return psutil.Process().memory_info().rss / BYTES_PER_MB


def reset_peak_resident() -> bool:
    """Let `peak_resident_mb` begin anew; say whether the system can do it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def peak_resident_mb() -> float | None:
    """Return the most memory of this process that was ever in RAM, in MB."""
    # Not ru_maxrss on Linux: a child starts with its parent's value.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / BYTES_PER_MB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / BYTES_PER_MB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / BYTES_PER_MB


@functools.cache
def _nvml() -> ModuleType | None:
    """NVIDIA's management library, ready for use."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # No package, no driver, or a driver of another version.
        return None
    return pynvml


def _gpu(index: int) -> Any | None:
    """NVML's handle of the GPU that CUDA gives this number; NVML counts them in its own order."""
    nvml = _nvml()
    if nvml is None:
        return None
    if (name := _uuid_by_cuda(index)) is not None:
        for kind in ("GPU", "MIG"):
            with contextlib.suppress(nvml.NVMLError):
                return nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{name}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if visible is None:
            return _by_number(nvml, index)
        # CUDA takes no notice of what stands behind the first name that means nothing.
        handles = [_by_name(nvml, name.strip()) for name in visible.split(",")[: index + 1]]
        return handles[index]
    except (ValueError, IndexError, nvml.NVMLError):
        return None


def _uuid_by_cuda(index: int) -> str | None:
    """What CUDA itself says, where this process uses it anyway: to ask would take GPU memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or index >= torch.cuda.device_count():
        return None
    found = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return None if found is None else str(found)


def _by_name(nvml: Any, name: str) -> Any:
    """Return the GPU that CUDA_VISIBLE_DEVICES names by number, or by the start of its UUID."""
    if not name.startswith(("GPU-", "MIG-")):
        return _by_number(nvml, int(name))
    with contextlib.suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    (handle,) = (gpu for gpu in handles if nvml.nvmlDeviceGetUUID(gpu).startswith(name))
    return handle


def _by_number(nvml: Any, number: int) -> Any:
    if not 0 <= number < nvml.nvmlDeviceGetCount():
        raise IndexError(number)
    return nvml.nvmlDeviceGetHandleByIndex(number)


def _gpu_reading(gpu: int, read: Callable[[Any, Any], float]) -> float | None:
    nvml, handle = _nvml(), _gpu(gpu)
    if nvml is None or handle is None:
        return None
    try:
        return read(nvml, handle)
    except nvml.NVMLError:  # This GPU has no such meter.
        return None


def _cpu_packages(powercap: Path) -> list[Path]:
    # "intel-rapl:0" is a socket; "intel-rapl:0:0" is a part of it.
    return sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)


def _microjoules(package: Path) -> int | None:
    return _read_int(package / "energy_uj")


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
