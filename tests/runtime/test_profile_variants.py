"""The profile of tiny networks."""

from __future__ import annotations

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from native_library import require_library

from capsprune.errors import CapspruneError, DeviceError
from capsprune.runtime import Place, Timing, profile, profile_variants, sessions


@pytest.fixture
def no_meters(monkeypatch):
    monkeypatch.setattr(profile.meters, "energy_joules", lambda work, *, gpu: None)


@pytest.mark.parametrize("with_library", [True, False])
def test_profile_of_three_variants(onnx_files, no_meters, tmp_path, monkeypatch, with_library):
    if with_library:
        require_library()
    else:
        monkeypatch.setenv("CAPSPRUNE_NATIVE", "0")
    kernels = {
        "caps": "native" if with_library else "portable",
        "inlined": "portable",
        "plain": None,
    }
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    calls = []
    measured = profile_variants(
        onnx_files,
        image_size=16,
        place=Place("cpu", threads=1),
        timing=Timing((1, 8), repeats=6, warmup=1),
        folder=tmp_path,
        progress=lambda *call: calls.append(call),
    )
    assert [(m.batch, m.variant) for m in measured] == [
        (batch, name) for batch in (1, 8) for name in onnx_files
    ]
    for m in measured:
        assert 0 < m.latency_ms_min <= m.latency_ms_p25 <= m.latency_ms <= m.latency_ms_p75
        assert m.images_per_second == pytest.approx(m.batch / m.latency_ms * 1000)
        assert (m.repeats, m.provider, m.image_size) == (6, "cpu", 16)
        assert m.peak_memory_mb > 0
        assert m.gpu_memory_mb is None
        assert m.energy_joules_per_image is None
        assert json.loads(json.dumps(m.to_dict())) == m.to_dict()
        if m.variant == "plain":
            assert m.routing_share == 0.0
            assert m.part_shares is None
        else:
            assert 0.0 < m.routing_share < 1
            assert set(m.part_shares) == {"trunk", "primary_caps", "output_caps", "routing"}
            assert sum(m.part_shares.values()) == pytest.approx(1)
            assert m.part_shares["routing"] == m.routing_share
        assert m.routing_kernel == kernels[m.variant]
        assert (m.portable_latency_ms is None) == (m.routing_kernel != "native")
        assert (m.portable_routing_share is None) == (m.routing_kernel != "native")
    # The variants take turns, the one with the routing node with each of its kernels.
    turns = ["caps", "caps, portable routing", "inlined", "plain"]
    if not with_library:
        turns.remove("caps, portable routing")
    assert [what for what, _, _ in calls[: len(turns) + 1]] == [
        f"{what}, batch 1" for what in [*turns, "caps"]
    ]
    total = 2 * 6 * len(turns)
    assert [call[1:] for call in calls] == [(n, total) for n in range(1, total + 1)]
    assert all(first[0] != second[0] for first, second in pairwise(calls))
    assert list(tmp_path.iterdir()) == []


def test_energy_is_for_one_image(onnx_files, monkeypatch):
    def two_joules(work, *, gpu):
        work()
        return 2.0

    monkeypatch.setattr(profile.meters, "energy_joules", two_joules)
    monkeypatch.setattr(profile, "ENERGY_SECONDS", 0.0)
    (m,) = profile_variants(
        {"plain": onnx_files["plain"]},
        image_size=16,
        place=Place("cpu"),
        timing=Timing([4], repeats=1),
    )
    assert m.energy_joules_per_image == pytest.approx(2.0 / 4)
    assert m.repeats == 1


def test_budget_limits_the_repeats(onnx_files, no_meters):
    (m,) = profile_variants(
        {"plain": onnx_files["plain"]},
        image_size=16,
        place=Place("cpu"),
        timing=Timing([1], repeats=50, budget_seconds=0.0),
    )
    assert m.repeats == 5


def node(name, op, start, took):
    event = {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": took}
    return {**event, "args": {"op_name": op}}


def run(start):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": 20, "args": {}}


def test_native_kernel_node_is_the_routing():
    events = [
        run(10),
        node("conv", "Conv", 11, 1000),
        run(40),
        node("conv", "Conv", 41, 30),
        node("head", "DynamicRouting", 42, 10),
    ]
    assert profile.routing_share_of(events) == pytest.approx(0.25)
    assert profile.routing_share_of([]) == 0.0
    assert profile.routing_kernel_of(events) == "native"
    inlined = node("DynamicRouting/votes_1", "MatMul", 43, 10)
    assert profile.routing_kernel_of([*events[:4], inlined]) == "portable"
    assert profile.routing_kernel_of(events[:4]) is None


def test_what_the_runtime_adds_counts_to_the_part_before():
    events = [
        run(10),
        node("trunk/conv", "Conv", 11, 1000),
        run(40),
        node("Reorder", "ReorderInput", 41, 1),
        node("trunk/conv_nchwc", "Conv", 42, 19),
        node("primary_caps/conv_nchwc", "Conv", 43, 50),
        node("Reorder_2", "ReorderOutput", 44, 10),
        node("_inlfunc_DynamicRouting_DynamicRouting/votes_1", "MatMul", 45, 15),
        node("output_caps/norm", "ReduceL2", 46, 5),
    ]
    parts = ["trunk", "primary_caps", "output_caps"]
    assert profile.part_shares_of(events, parts) == pytest.approx(
        {"trunk": 0.2, "primary_caps": 0.6, "routing": 0.15, "output_caps": 0.05}
    )
    assert profile.part_shares_of([], parts) == {}
    # As a file with one routing iteration, which has no node of ours.
    assert "routing" not in profile.part_shares_of(events[:-2], parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing": {"batches": [1, 0]}}, "Batch sizes must be at least 1, not 1, 0"),
        ({"timing": {"batches": []}}, "Batch sizes"),
        ({"timing": {"repeats": 0}}, "at least 1 repeat"),
        ({"timing": {"warmup": -1}}, "warm up"),
        ({"threads": 0}, "at least 1 thread"),
        ({"image_size": 20}, "Variant 'plain' cannot be run on images"),
    ],
)
def test_bad_arguments(onnx_files, options, message):
    timing = Timing(**{"batches": [1], "repeats": 1, **options.get("timing", {})})
    place = Place("cpu", threads=options.get("threads"))
    size = options.get("image_size", 16)
    with pytest.raises(CapspruneError, match=message):
        profile_variants(
            {"plain": onnx_files["plain"]}, image_size=size, place=place, timing=timing
        )


def test_nothing_to_profile():
    with pytest.raises(CapspruneError, match="no exported network"):
        profile_variants({}, image_size=16)


def test_cuda_without_a_gpu(onnx_files, monkeypatch):
    monkeypatch.setattr(sessions, "gpu_present", lambda gpu=0: False)
    with pytest.raises(DeviceError, match="--provider cuda needs an NVIDIA GPU"):
        profile_variants(onnx_files, image_size=16, place=Place("cuda"))


def test_probe_that_fails_is_told(onnx_files, tmp_path):
    with pytest.raises(CapspruneError, match="There is no ONNX file"):
        profile._memory(tmp_path / "gone.onnx", (1, 3, 16, 16), "cpu", None)


def test_a_record_of_nodes_that_is_cut_off_is_named(onnx_files, tmp_path, monkeypatch):
    """ONNX Runtime says nothing where there is no space left."""

    class CutOff:
        def __init__(self, opened):
            self._opened = opened

        def __getattr__(self, name):
            return getattr(self._opened, name)

        def end_profiling(self):
            path = Path(self._opened.end_profiling())
            os.truncate(path, path.stat().st_size // 2)
            return str(path)

    real = profile.session
    monkeypatch.setattr(profile, "session", lambda *given, **named: CutOff(real(*given, **named)))
    with pytest.raises(CapspruneError, match=rf"{tmp_path} is incomplete.*space left"):
        profile_variants({"plain": onnx_files["plain"]}, image_size=16, folder=tmp_path)
    assert not list(tmp_path.iterdir())
