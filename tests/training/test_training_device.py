import pytest
import torch

from capsprune.errors import DeviceError
from capsprune.training.device import make_fabric


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_training_runs_on_the_cpu(no_gpu, device):
    assert make_fabric(device).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_not_there(no_gpu, device):
    with pytest.raises(DeviceError, match=rf"--device {device} needs a GPU.*--device cpu"):
        make_fabric(device)


def test_one_gpu_is_not_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"cuda:1 .*there is 1"):
        make_fabric("cuda:1")


@pytest.mark.parametrize("device", ["tpu", "gpu", "", "CPU", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(DeviceError, match=rf"'{device}' is no device; give --device auto"):
        make_fabric(device)
