"""The op library in ONNX Runtime beside the portable function in the same file, and PyTorch."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_library import require_library
from onnx import helper

from capsprune import doctor, native
from capsprune.capsules import dynamic_routing
from capsprune.capsules.routing_op import routing_model
from capsprune.errors import CapspruneError
from capsprune.native import build
from capsprune.runtime import op_library, session
from capsprune.runtime.meters import gpu_present

SOURCES = Path(build.__file__).with_name("src")


def drawn(seed, batch, capsules, classes, d1, d2, scale=0.5):
    rng = np.random.default_rng(seed)
    u = rng.normal(0, scale, (batch, capsules, d1)).astype(np.float32)
    weight = rng.normal(0, 0.3, (classes, capsules, d1, d2)).astype(np.float32)
    return u, weight, rng.normal(0, 0.3, (classes, d2)).astype(np.float32)


def opened(model, **options):
    return session(model.SerializeToString(), provider="cpu", **options)


@settings(max_examples=40)
@given(
    batch=st.integers(0, 37),
    capsules=st.integers(1, 40),
    classes=st.integers(1, 12),
    d1=st.integers(1, 10),
    d2=st.integers(1, 33),
    iterations=st.integers(1, 10),
    biased=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@example(
    batch=17,
    capsules=243,
    classes=10,
    d1=8,
    d2=16,
    iterations=3,
    biased=True,
    threads=2,
    seed=0,
)
def test_native_portable_and_pytorch_agree(
    batch, capsules, classes, d1, d2, iterations, biased, threads, seed
):
    require_library()
    u, weight, bias = drawn(seed, batch, capsules, classes, d1, d2)
    given_bias = bias if biased else None
    model = routing_model(weight, given_bias, iterations)
    results = [
        opened(model, threads=threads, native=native).run(None, {"u": u})[0]
        for native in (True, False)
    ]
    tensors = [None if a is None else torch.from_numpy(a) for a in (u, weight, given_bias)]
    results.append(dynamic_routing(*tensors, iterations).numpy())
    truth = dynamic_routing(*(t if t is None else t.double() for t in tensors), iterations).numpy()
    for v in results:
        assert v.dtype == np.float32
        np.testing.assert_allclose(v, truth, rtol=1e-5, atol=1e-5)


def test_one_session_takes_any_batch():
    require_library()
    u, weight, bias = drawn(1, 40, 20, 6, 8, 16)
    routed = opened(routing_model(weight, bias))
    expected = dynamic_routing(*(torch.from_numpy(a) for a in (u, weight, bias))).numpy()
    for batch in (40, 0, 1, 2, 3, 4, 5, 16, 17, 33):
        (v,) = routed.run(None, {"u": u[:batch]})
        np.testing.assert_allclose(v, expected[:batch], rtol=1e-5, atol=1e-6)


def test_several_threads_and_sessions_at_once():
    require_library()
    u, weight, bias = drawn(2, 21, 50, 7, 8, 16)
    model = routing_model(weight, bias)
    sessions = [opened(model, native=native) for native in (True, True, False)]
    expected = sessions[2].run(None, {"u": u})[0]
    wrong = []

    def work(n):
        for _ in range(20):
            (v,) = sessions[n % 3].run(None, {"u": u})
            if not np.allclose(v, expected, rtol=1e-5, atol=1e-6):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_weight_may_be_an_input():
    require_library()
    u, weight, _ = drawn(3, 3, 6, 4, 3, 5)
    model = routing_model(weight)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("weight", 1, [4, None, 3, 5]))
    routed = opened(model)
    (v,) = routed.run(None, {"u": u, "weight": weight})
    expected = dynamic_routing(torch.from_numpy(u), torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match=r"not \[3, 6, 3\], \[4, 5, 3, 5\]"):
        routed.run(None, {"u": u, "weight": weight[:, :5].copy()})


def test_a_node_that_cannot_be_routed_is_refused():
    require_library()
    _, weight, _ = drawn(4, 1, 6, 4, 3, 5)
    model = routing_model(weight)
    next(a for a in model.graph.node[0].attribute if a.name == "iterations").i = 0
    with pytest.raises(CapspruneError, match="iterations of DynamicRouting must be at least 1"):
        opened(model)


@pytest.mark.parametrize("value", [np.nan, 1e12, 1e-30])
@pytest.mark.parametrize("batch", [1, 17])
def test_odd_values(value, batch):
    require_library()
    u, weight, bias = drawn(5, batch, 6, 4, 8, 16)
    u[-1] = value
    (v,) = opened(routing_model(weight, bias)).run(None, {"u": u})
    assert np.isnan(v[-1]).all() == np.isnan(value)
    assert np.isfinite(v[:-1]).all() and (np.isnan(value) or np.isfinite(v).all())


def test_without_the_library_the_same_file_runs(monkeypatch):
    u, weight, bias = drawn(6, 3, 6, 4, 8, 16)
    content = routing_model(weight, bias).SerializeToString()
    expected = session(content, provider="cpu").run(None, {"u": u})[0]
    monkeypatch.setenv(native.SWITCH, "0")
    assert op_library() is None
    assert native.instruction_set() is None
    (v,) = session(content, provider="cpu").run(None, {"u": u})
    np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)
    finding = next(f for f in doctor.examine() if f.name == "op library")
    assert finding.found.startswith("switched off") and finding.remedy == "unset CAPSPRUNE_NATIVE"


def test_doctor_tells_the_library():
    path = require_library()
    finding = next(f for f in doctor.examine() if f.name == "op library")
    assert str(path) in finding.found and native.instruction_set() in finding.found
    assert finding.remedy == ""


def test_a_library_that_cannot_be_loaded_is_told_and_not_used(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    monkeypatch.setattr(native, "_path", lambda: broken)
    assert native.library_path() is None
    assert native.why_missing() == "not usable here, build it anew"
    monkeypatch.setattr(native, "_path", lambda: tmp_path / "gone.so")
    assert native.why_missing() == "not built"


def test_no_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NoCompiler, match="install g"):
        build.build(tmp_path / "library.so")
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'raise SystemExit(1)'")
    with pytest.raises(build.NoCompiler, match="did not compile"):
        build.build(tmp_path / "library.so")
    assert list(tmp_path.iterdir()) == []


def test_the_api_header_is_valid_by_itself():
    try:
        compiler = build.find_compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    # Compares with the official header too, where there is one.
    command = [*compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, str(SOURCES / "ort_api_check.cc")], check=True)


def test_on_a_gpu():
    if not gpu_present():
        pytest.skip("there is no NVIDIA GPU")
    if op_library("cuda") is None:
        pytest.skip("the op library was built without CUDA")
    u, weight, bias = drawn(7, 37, 50, 10, 8, 16)
    content = routing_model(weight, bias).SerializeToString()
    (v,) = session(content, provider="cuda").run(None, {"u": u})
    (expected,) = session(content, provider="cpu", native=False).run(None, {"u": u})
    np.testing.assert_allclose(v, expected, rtol=1e-4, atol=1e-5)
