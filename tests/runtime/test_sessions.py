"""Sessions, and the choice of where they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from capsprune.errors import CapspruneError, DeviceError
from capsprune.export.ort import quiet_stderr
from capsprune.pipeline.profile import say_where
from capsprune.runtime import resolve_provider, session, sessions
from capsprune.runtime.profile import Place, Timing, profile_variants

IMAGES = np.zeros((2, 3, 16, 16), np.float32)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(sessions, "gpu_present", lambda gpu=0: False)


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_session_runs_on_the_cpu(onnx_files, no_gpu, provider):
    opened = session(onnx_files["caps"], provider=provider, threads=1)
    assert opened.get_providers() == ["CPUExecutionProvider"]
    assert sessions.provider_of(opened) == "cpu"
    probabilities, poses = opened.run(None, {"image": IMAGES})
    assert probabilities.shape == (2, 5)
    assert poses.shape == (2, 5, 16)


def test_session_of_a_string_and_of_bytes(onnx_files):
    path = onnx_files["plain"]
    for model in (str(path), path.read_bytes()):
        assert session(model, provider="cpu").run(None, {"image": IMAGES})[0].shape == (2, 5)


def test_profile_is_written_where_asked(onnx_files, tmp_path):
    opened = session(onnx_files["plain"], provider="cpu", profile_prefix=tmp_path / "nodes")
    opened.run(None, {"image": IMAGES})
    written = Path(opened.end_profiling())
    assert written.parent == tmp_path
    assert json.loads(written.read_text(encoding="utf-8"))


def test_cuda_without_a_gpu(onnx_files, no_gpu):
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU was found, use --provider cpu\.$"):
        session(onnx_files["caps"], provider="cuda")


def test_cuda_without_onnxruntime_gpu(monkeypatch):
    monkeypatch.setattr(sessions, "gpu_present", lambda gpu=0: True)
    monkeypatch.setattr(
        sessions.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    assert resolve_provider("auto") == "cpu"
    with pytest.raises(DeviceError, match="no onnxruntime-gpu was found"):
        resolve_provider("cuda")


@pytest.fixture
def gpu_without_cudnn(monkeypatch):
    """A GPU, and an ONNX Runtime that knows CUDA but cannot load it: then it runs on the CPU."""
    monkeypatch.setattr(sessions, "gpu_present", lambda gpu=0: True)
    real = sessions.onnxruntime.InferenceSession
    asked = []

    def open_session(model, options, providers):
        asked.append(providers)
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        sessions.onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", open_session)
    return asked


def test_auto_falls_back_to_a_session_as_the_cpu_has_it(onnx_files, gpu_without_cudnn):
    opened = session(onnx_files["caps"], provider="auto", gpu=1)
    assert sessions.provider_of(opened) == "cpu"
    assert gpu_without_cudnn == [
        [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"],
        ["CPUExecutionProvider"],
    ]
    with pytest.raises(DeviceError, match="could not load its CUDA provider"):
        session(onnx_files["caps"], provider="cuda")


@pytest.mark.usefixtures("gpu_without_cudnn")
def test_auto_profiles_on_the_cpu_where_cuda_cannot_be_loaded(onnx_files):
    measurements = profile_variants(
        {"caps": onnx_files["caps"]},
        image_size=16,
        place=Place(threads=1),
        timing=Timing((1,), repeats=1, warmup=1),
    )
    assert [one.provider for one in measurements] == ["cpu"]
    assert measurements[0].routing_share is not None  # as on the CPU
    assert measurements[0].gpu_memory_mb is None
    said = []
    say_where("cuda", measurements, SimpleNamespace(say=said.append))
    say_where("cpu", measurements, SimpleNamespace(say=pytest.fail))
    assert "could not load its CUDA provider" in said[0] and "on the CPU" in said[0]


def test_unknown_provider(onnx_files):
    with pytest.raises(DeviceError, match="Unknown provider 'cdua'; did you mean cuda"):
        session(onnx_files["caps"], provider="cdua")


def test_missing_file(tmp_path):
    with pytest.raises(CapspruneError, match="There is no ONNX file"):
        session(tmp_path / "model.onnx", provider="cpu")


def test_foreign_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x00 no model")
    with pytest.raises(CapspruneError, match="cannot be run by ONNX Runtime") as error:
        session(tmp_path / "model.onnx", provider="cpu")
    assert "\n" not in str(error.value)


def test_importing_the_package_is_cheap():
    code = (
        "import sys, capsprune.runtime; "
        "assert not {'onnxruntime', 'torch', 'onnx', 'numpy'} & set(sys.modules); "
        "from capsprune.runtime import session; "
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quiet_stderr_hushes_native_code_and_ends(capfd):
    shout = ["sh", "-c", "echo heard >&2"]
    with quiet_stderr():
        subprocess.run(shout, check=True)
    assert capfd.readouterr().err == ""
    subprocess.run(shout, check=True)
    assert capfd.readouterr().err == "heard\n"
