"""The CUDA kernels: compiled where nvcc is, and their arithmetic on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_library import require_library

from capsprune import native
from capsprune.capsules import dynamic_routing
from capsprune.native import build


@settings(max_examples=25)
@given(
    batch=st.integers(0, 19),
    capsules=st.integers(1, 20),
    classes=st.integers(1, 70),
    d1=st.integers(1, 9),
    d2=st.integers(1, 20),
    iterations=st.integers(1, 4),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
# More votes than shared memory holds: they are computed twice.
@example(batch=3, capsules=5, classes=800, d1=8, d2=16, iterations=3, biased=True, seed=0)
@example(batch=64, capsules=9, classes=200, d1=8, d2=16, iterations=3, biased=True, seed=0)
def test_arithmetic_on_the_cpu(batch, capsules, classes, d1, d2, iterations, biased, seed):
    require_library()
    generator = torch.Generator().manual_seed(seed)
    u = 0.5 * torch.randn(batch, capsules, d1, generator=generator)
    weight = 0.3 * torch.randn(classes, capsules, d1, d2, generator=generator)
    bias = 0.3 * torch.randn(classes, d2, generator=generator) if biased else None
    v = torch.full((batch, classes, d2), torch.nan)
    addresses = (u.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr())
    sizes = (batch, capsules, classes, d1, d2)
    native.emulate_cuda(sizes, iterations, 1e-6, addresses, v.data_ptr())
    wide = [None if t is None else t.double() for t in (u, weight, bias)]
    torch.testing.assert_close(v.double(), dynamic_routing(*wide, iterations), rtol=1e-5, atol=1e-5)


def test_too_many_classes_are_told():
    require_library()
    u, weight, v = torch.zeros(1, 1, 1), torch.zeros(20000, 1, 1, 1), torch.zeros(1, 20000, 1)
    addresses = (u.data_ptr(), weight.data_ptr(), None)
    with pytest.raises(MemoryError, match="fewer classes"):
        native.emulate_cuda((1, 1, 20000, 1, 1), 1, 1e-6, addresses, v.data_ptr())


@pytest.mark.slow
def test_kernels_compile_and_the_library_works_without_a_gpu(tmp_path):
    nvcc = build.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    target = tmp_path / build.LIBRARY
    build.build(target, nvcc=nvcc)
    # In a process of its own: this one keeps the library that it has.
    code = f"""
import numpy as np
from pathlib import Path
from capsprune import native
native._path = lambda: Path({str(target)!r})
from capsprune.capsules.routing_op import routing_model
from capsprune.runtime import op_library, session
assert native.has_cuda() and op_library("cuda") == Path({str(target)!r})
rng = np.random.default_rng(0)
content = routing_model(rng.normal(size=(4, 6, 3, 5))).SerializeToString()
u = rng.normal(size=(3, 6, 3)).astype(np.float32)
native, portable = (
    session(content, provider="cpu", native=one).run(None, {{"u": u}})[0] for one in (True, False)
)
np.testing.assert_allclose(native, portable, rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
