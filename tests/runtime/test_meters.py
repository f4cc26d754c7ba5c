"""Meters: what they read, and None where there is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from capsprune.runtime import meters


class FakeNvml:
    """Some GPUs, as NVIDIA's library shows them: number n has 3 + n MB in use, and a UUID."""

    class NVMLError(Exception):
        pass

    def __init__(self, energy=(5000, 7500), uuids=("aaa-0",)):
        self.energy = list(energy)
        self.uuids = list(uuids)

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, gpu):
        return f"GPU-{self.uuids[gpu]}"

    def nvmlDeviceGetHandleByUUID(self, name):
        if not name.startswith("GPU-") or name[4:] not in self.uuids:
            raise self.NVMLError
        return self.uuids.index(name[4:])

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=(3 + gpu) * 1_000_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        if not self.energy:
            raise self.NVMLError
        return self.energy.pop(0)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setattr(meters, "_nvml", lambda: fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_nothing_is_none_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(meters, "_nvml", lambda: None)
    assert not meters.gpu_present()
    assert meters.gpu_memory_used_mb() is None
    assert meters.gpu_energy_joules() is None
    assert meters.energy_joules(pytest.fail, gpu=0) is None


def test_gpu_meters(gpu):
    assert meters.gpu_present()
    assert meters.gpu_memory_used_mb() == 3.0
    done = []
    assert meters.energy_joules(lambda: done.append(1), gpu=0) == pytest.approx(2.5)
    assert done == [1]


def test_gpu_without_an_energy_meter(gpu):
    gpu.energy.clear()
    assert meters.energy_joules(pytest.fail, gpu=0) is None


@pytest.mark.parametrize(
    ("visible", "present"), [("", False), ("-1", False), ("3", False), ("0,1", True)]
)
def test_hidden_gpus_are_not_there(gpu, monkeypatch, visible, present):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert meters.gpu_present() is present


@pytest.mark.parametrize(
    ("visible", "number", "megabytes"),
    [
        (None, 0, 3),
        (None, 1, 4),
        (None, 3, None),
        ("2,0", 0, 5),
        ("2,0", 1, 3),
        ("2,0", 2, None),
        ("GPU-ccc-2,GPU-bbb-1", 1, 4),
        ("GPU-c", 0, 5),  # the start of a UUID is enough
        ("GPU-zzz,1", 1, None),  # what stands behind a name that means nothing does not count
        ("1,-1,0", 1, None),
    ],
)
def test_a_gpu_is_the_one_that_cuda_counts(gpu, monkeypatch, visible, number, megabytes):
    gpu.uuids = ["aaa-0", "bbb-1", "ccc-2"]
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert meters.gpu_memory_used_mb(number) == megabytes
    assert meters.gpu_present(number) is (megabytes is not None)
    assert meters.TrainingMeter(gpu=number).summary()["peak_memory_mb"] == megabytes


def test_cuda_itself_is_believed_where_it_is_in_use(gpu, monkeypatch):
    """CUDA begins with the fastest GPU, NVML goes by the bus."""
    gpu.uuids = ["aaa-0", "bbb-1"]
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda index: SimpleNamespace(uuid=["bbb-1", "aaa-0"][index]),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert [meters.gpu_memory_used_mb(index) for index in (0, 1)] == [4, 3]
    cuda.is_initialized = lambda: False  # to ask would take memory on the GPU
    assert [meters.gpu_memory_used_mb(index) for index in (0, 1)] == [3, 4]


def counter(directory, name, value):
    zone = directory / name
    zone.mkdir()
    (zone / "energy_uj").write_text(f"{value}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    return zone / "energy_uj"


def test_energy_of_all_sockets_and_not_of_their_parts(tmp_path):
    first = counter(tmp_path, "intel-rapl:0", 100)
    second = counter(tmp_path, "intel-rapl:1", 900_000)
    part = counter(tmp_path, "intel-rapl:0:0", 0)

    def work():
        first.write_text("300100")
        second.write_text("100000")  # It reached 1000000 and began anew.
        part.write_text("999999")

    joules = meters.energy_joules(work, gpu=None, powercap=tmp_path)
    assert joules == pytest.approx(0.3 + 0.2)


def test_a_counter_that_is_read_now_and_then_outlasts_its_range(tmp_path):
    zone = counter(tmp_path, "intel-rapl:0", 400_000)
    energy = meters.EnergyCounter(gpu=None, powercap=tmp_path)
    for value in (900_000, 400_000, 900_000, 400_000):  # twice around, half by half
        zone.write_text(str(value))
        energy.read()
    assert energy.joules == pytest.approx(2.0) and energy.meter == "RAPL"
    zone.unlink()
    energy.read()
    assert energy.joules is None  # what is not known whole is not known


def test_a_trainings_memory_is_its_own_peak():
    def grow(megabytes):
        bytearray(megabytes * 1_000_000)[::4096] = b"x" * len(range(0, megabytes * 1_000_000, 4096))

    grow(300)  # before: it must not count
    meter = meters.TrainingMeter(gpu=None)
    small = meter.summary()
    grow(200)
    meter.tick()
    large = meter.summary()
    assert small["memory_meter"] == large["memory_meter"] == "resident set"
    assert 150 < large["peak_memory_mb"] - small["peak_memory_mb"] < 260
    assert (large["energy_joules"] is None) == (large["energy_meter"] is None)


def test_a_trainings_memory_on_a_gpu_is_nvmls(gpu):
    summary = meters.TrainingMeter(gpu=0).summary()
    assert summary["memory_meter"] == "NVML" and summary["peak_memory_mb"] > 0
    assert summary["energy_meter"] == "NVML"


def test_no_energy_counter(tmp_path):
    assert meters.energy_joules(pytest.fail, gpu=None, powercap=tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert meters.energy_joules(pytest.fail, gpu=None, powercap=tmp_path) is None


def test_peak_resident_memory_follows_an_allocation():
    meters.reset_peak_resident()
    before = meters.peak_resident_mb()
    block = np.ones(80_000_000, np.uint8)
    assert meters.peak_resident_mb() >= before + 60
    assert meters.peak_resident_mb() >= meters.resident_mb() - 1
    del block
    assert meters.peak_resident_mb() >= before + 60
