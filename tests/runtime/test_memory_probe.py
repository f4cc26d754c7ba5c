"""The memory of a session, measured in a process of its own."""

from __future__ import annotations

from capsprune.runtime.profile import _memory


def test_larger_activations_take_more(onnx_files):
    small = _memory(onnx_files["plain"], (1, 3, 16, 16), "cpu", 1)
    large = _memory(onnx_files["plain"], (4096, 3, 16, 16), "cpu", 1)
    # The first layer's output alone: 4096 images x 8 channels x 8 x 8 floats is 8.4 MB.
    assert 0 < small["peak_memory_mb"] < large["peak_memory_mb"] - 8
    assert large["running_memory_mb"] is None or large["running_memory_mb"] > 8
    assert large["gpu_memory_mb"] is None
