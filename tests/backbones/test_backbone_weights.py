import random
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from capsprune.backbones.registry import build_backbone
from capsprune.backbones.weights import initialise
from capsprune.backbones.weights_file import read_content
from capsprune.errors import CapspruneError, CheckpointError, ModelError

NAME = "mobilenet_v1"


@pytest.fixture(scope="module")
def published():
    """A state dict with recognisable values, for 5 classes."""
    generator = torch.Generator().manual_seed(0)
    state = build_backbone(NAME, 5).state_dict()
    return {
        key: torch.randn(value.shape, generator=generator).to(value.dtype)
        for key, value in state.items()
    }


@pytest.fixture
def model():
    torch.manual_seed(1)
    return build_backbone(NAME, 5)


def copy_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(state, other, keys=None):
    keys = state if keys is None else keys
    return all(torch.equal(state[key], other[key]) for key in keys)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return str(path)


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "net": lambda state: {"net": state, "optimizer": {"lr": 0.1}},
    "data-parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled-parallel": lambda state: {
        f"_orig_mod.module.{key}": value for key, value in state.items()
    },
    "parallel-compiled": lambda state: {
        f"module._orig_mod.{key}": value for key, value in state.items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_load_through_usual_wrappings(published, model, tmp_path, wrapping):
    path = saved(tmp_path / "w.pth", WRAPPINGS[wrapping](published))
    said = initialise(model, NAME, path)
    assert same(published, model.state_dict())
    assert path in said and "\n" not in said and "classifier" not in said


def test_weights_load_from_old_files_and_safetensors(published, tmp_path):
    save_file(published, tmp_path / "w.safetensors")
    paths = [
        saved(tmp_path / "old.pth", published, _use_new_zipfile_serialization=False),
        str(tmp_path / "w.safetensors"),
    ]
    for path in paths:
        fresh = build_backbone(NAME, 5)
        initialise(fresh, NAME, path)
        assert same(published, fresh.state_dict())


def test_counters_may_be_absent(published, model, tmp_path):
    state = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    initialise(model, NAME, saved(tmp_path / "w.pth", state))
    assert same(state, model.state_dict())


def test_a_classifier_of_other_classes_is_dropped_and_said(published, tmp_path):
    path = saved(tmp_path / "w.pth", published)
    torch.manual_seed(1)
    fresh = build_backbone(NAME, 3)
    before = copy_of(fresh)
    said = initialise(fresh, NAME, path)
    linear = ("linear.weight", "linear.bias")
    assert "classifier drawn anew (3 classes)" in said
    assert same(before, fresh.state_dict(), linear)
    assert same(published, fresh.state_dict(), set(published) - set(linear))


class Booby:
    """Loading its pickle creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("inside", ["whole", "beside"])
def test_a_pickled_object_is_refused_and_never_executed(
    published, model, tmp_path, new_format, inside
):
    marker = tmp_path / "executed"
    booby = Booby(marker)
    content = booby if inside == "whole" else {"state_dict": published, "args": booby}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=new_format)
    torch.load(path, weights_only=False)
    assert marker.exists()  # it is as dangerous as we say
    marker.unlink()
    before = copy_of(model)
    with pytest.raises(CheckpointError, match=r"pickled object.*state_dict\(\) alone"):
        initialise(model, NAME, path)
    assert not marker.exists()
    assert same(before, model.state_dict())


def test_a_whole_pickled_module_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="pickled object"):
        initialise(model, NAME, saved(tmp_path / "w.pth", model))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused_wherever_they_end(tmp_path, kind):
    state = {"a.weight": torch.randn(4, 4), "a.bias": torch.randn(4)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert same(state, read_content(path))
    content = path.read_bytes()
    ends = {0, 1, 2, 3, 5, 10, 50, 200, len(content) - 1}
    ends |= set(random.Random(0).sample(range(len(content)), 60))
    for end in sorted(ends):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError) as error:
            read_content(path)
        assert str(path) in str(error.value), end
        assert ". " not in str(error.value), end  # one sentence


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights at all\n",
        b"<!DOCTYPE html><html></html>",
        b"\x80\x02.",
        b"\x80\x02K\x01.",
    ],
)
def test_foreign_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_content(path)
    assert str(path) in str(error.value)


def test_noise_is_refused(tmp_path):
    path, noise = tmp_path / "w.pth", random.Random(0)
    for _ in range(150):
        path.write_bytes(b"\x80\x02" + noise.randbytes(noise.randrange(1, 40)))
        with pytest.raises(CheckpointError):
            read_content(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ({"conv1.weight": [0.5]}, "holds no state dict"),
        ({"a": torch.zeros(3), "epoch": 3}, "no tensor 'conv1.weight', so it is no mobilenet_v1"),
        ({"a": torch.zeros(3), "conv1.weight": [0.5]}, "something else than a tensor under 'conv1"),
    ],
)
def test_files_of_other_things_are_refused(model, tmp_path, content, said):
    with pytest.raises(CheckpointError, match=said):
        initialise(model, NAME, saved(tmp_path / "w.pth", content))


def test_a_missing_file_is_named(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights file .*absent\.pth"):
        initialise(model, NAME, str(tmp_path / "absent.pth"))


def test_a_wrong_shape_names_the_tensor(published, model, tmp_path):
    before = copy_of(model)
    state = dict(published) | {"layers.3.conv2.weight": torch.zeros(100, 128, 1, 1)}
    with pytest.raises(CheckpointError) as error:
        initialise(model, NAME, saved(tmp_path / "w.pth", state))
    for named in ("layers.3.conv2.weight", "[100, 128, 1, 1]", "[256, 128, 1, 1]"):
        assert named in str(error.value)
    assert same(before, model.state_dict())


def test_a_missing_or_a_foreign_tensor_is_named(published, model, tmp_path):
    before = copy_of(model)
    state = {k: v for k, v in published.items() if k != "layers.7.bn2.bias"}
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.7\.bn2\.bias'.*--model"):
        initialise(model, NAME, saved(tmp_path / "less.pth", state))
    state = dict(published) | {"layers.13.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"tensor 'layers\.13\.conv1\.weight'.*lacks"):
        initialise(model, NAME, saved(tmp_path / "more.pth", state))
    assert same(before, model.state_dict())


def test_none_keeps_what_was_drawn(model):
    before = copy_of(model)
    assert "scratch" in initialise(model, NAME, "none")
    assert same(before, model.state_dict())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network; gives the place of cached weights."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def test_auto_falls_back_to_scratch_without_network(offline):
    fresh = build_backbone("resnet18", 4)
    before = copy_of(fresh)
    said = initialise(fresh, "resnet18", "auto")
    assert said.startswith("from scratch") and "no route to host" in said and "\n" not in said
    assert same(before, fresh.state_dict())


def test_imagenet_without_network_says_where_to_put_the_file(offline):
    with pytest.raises(ModelError) as error:
        initialise(build_backbone("resnet18", 4), "resnet18", "imagenet")
    assert str(offline) in str(error.value) and "resnet18-f37072fd.pth" in str(error.value)


def test_auto_and_imagenet_where_there_are_no_weights(model, offline):
    before = copy_of(model)
    assert "no ImageNet weights for mobilenet_v1" in initialise(model, NAME, "auto")
    assert same(before, model.state_dict())
    with pytest.raises(ModelError, match="--weights none"):
        initialise(model, NAME, "imagenet")


def test_cached_imagenet_weights_need_no_network(offline):
    torch.manual_seed(5)
    weights = build_backbone("resnet18", 1000).state_dict()
    saved(offline / "resnet18-f37072fd.pth", weights)
    for asked in ("auto", "imagenet"):
        fresh = build_backbone("resnet18", 4)
        said = initialise(fresh, "resnet18", asked)
        assert "ImageNet" in said and "classifier drawn anew (4 classes)" in said
        assert torch.equal(fresh.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut"])
def test_a_damaged_cache_is_one_sentence(offline, content):
    (offline / "resnet18-f37072fd.pth").write_bytes(content)
    fresh = build_backbone("resnet18", 4)
    with pytest.raises(CapspruneError) as error:
        initialise(fresh, "resnet18", "imagenet")
    assert "resnet18-f37072fd.pth" in str(error.value)
