"""Sessions, and the choice of where they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capsprune.errors import CapspruneError, DeviceError
from capsprune.export.ort import quiet_stderr
from capsprune.runtime import resolve_provider, session, sessions

IMAGES = np.zeros((2, 3, 16, 16), np.float32)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(sessions, "gpu_present", lambda: False)


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
    monkeypatch.setattr(sessions, "gpu_present", lambda: True)
    monkeypatch.setattr(
        sessions.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    assert resolve_provider("auto") == "cpu"
    with pytest.raises(DeviceError, match="no onnxruntime-gpu was found"):
        resolve_provider("cuda")


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
