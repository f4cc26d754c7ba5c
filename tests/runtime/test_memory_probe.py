"""The memory of a session, measured in a process of its own."""

from __future__ import annotations

import json

import pytest

from capsprune.runtime import memory_probe
from capsprune.runtime.profile import _memory


def test_larger_activations_take_more(onnx_files):
    small = _memory(onnx_files["plain"], 1, "cpu", 16, 1)
    large = _memory(onnx_files["plain"], 4096, "cpu", 16, 1)
    # The first layer's output alone: 4096 images x 8 channels x 8 x 8 floats is 8.4 MB.
    assert 0 < small["peak_memory_mb"] < large["peak_memory_mb"] - 8
    assert large["running_memory_mb"] is None or large["running_memory_mb"] > 8
    assert large["gpu_memory_mb"] is None


def test_command_line_prints_json(onnx_files, capsys):
    memory_probe.main([str(onnx_files["caps"]), "2", "cpu", "--image-size", "16", "--threads", "1"])
    assert json.loads(capsys.readouterr().out).keys() == {
        "peak_memory_mb",
        "running_memory_mb",
        "gpu_memory_mb",
    }


def test_bad_provider_is_refused(onnx_files):
    with pytest.raises(SystemExit):
        memory_probe.main([str(onnx_files["caps"]), "2", "tpu", "--image-size", "16"])
