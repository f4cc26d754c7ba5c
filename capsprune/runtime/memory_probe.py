"""Measure the memory that one exported network takes.

A fresh process is needed since memory that was freed once, by another network say, would hide what
this one takes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capsprune.runtime import meters
from capsprune.runtime.sessions import session

#: The first run allocates; the second one shows whether more is needed once buffers are reused.
RUNS = 2


def measure_memory(
    path: Path,
    shape: tuple[int, ...],
    provider: str,
    threads: int | None = None,
    gpu: int = 0,
) -> dict[str, float | None]:
    """Open a session in this process, run it, and say what memory that took.

    Args:
        path: the ONNX file.
        shape: of the images in one run, (batch, C, S, S).
        provider: "cpu" or "cuda".
        threads: threads of one operator; None leaves it to ONNX Runtime.
        gpu: number of the GPU.

    Returns:
        `peak_memory_mb`: the process's peak resident memory from before the session was made (with
        libraries and input loaded) until after the runs, less what was resident before. Reading the
        file often takes the most, two to four times its weights.
        `running_memory_mb`: the same, but the peak is that of the runs alone: weights and
        activations. None where the system cannot tell.
        `gpu_memory_mb`: GPU memory in use after the runs, less that before. None on the CPU.
    """
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    gpu_before = meters.gpu_memory_used_mb(gpu) if provider == "cuda" else None
    meters.reset_peak_resident()
    before = meters.resident_mb()
    opened = session(path, provider=provider, threads=threads, gpu=gpu)
    loading_peak = meters.peak_resident_mb()
    can_reset = meters.reset_peak_resident()
    for _ in range(RUNS):
        opened.run(None, {opened.get_inputs()[0].name: images})
    running_peak = meters.peak_resident_mb()
    gpu_after = meters.gpu_memory_used_mb(gpu) if provider == "cuda" else None

    def above(peak: float | None, start: float | None) -> float | None:
        return None if peak is None or start is None else peak - start

    peaks = [peak for peak in (loading_peak, running_peak) if peak is not None]
    return {
        "peak_memory_mb": above(max(peaks, default=None), before),
        "running_memory_mb": above(running_peak, before) if can_reset else None,
        # ONNX Runtime keeps what it allocated on the GPU until the session ends.
        "gpu_memory_mb": above(gpu_after, gpu_before),
    }
