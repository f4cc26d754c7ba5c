import os
import re
from pathlib import Path

import pytest
from test_plain_yaml import HOSTILE

from capsprune.errors import CapspruneError
from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    InspectOptions,
    ProfileOptions,
    PruneOptions,
    RecipeError,
    RunOptions,
    SessionOptions,
    TrainOptions,
    parse_options,
)
from capsprune.recipe import parse_recipe, read_recipe
from capsprune.sweep import read_sweep_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_it_are_recipes(path):
    assert read_recipe(path).stages["baseline"].model


def test_hyphens_and_underscores_are_one(tmp_path):
    texts = (
        "train: {model: resnet18, image-size: 64}\nprune: {bn-batches: 3}\nattach-caps: {d1: 4}",
        "train: {model: resnet18, image_size: 64}\nprune: {bn_batches: 3}\nattach_caps: {d1: 4}",
    )
    recipes = []
    for text in texts:
        (tmp_path / "mine.yaml").write_text(text)
        recipes.append(read_recipe(tmp_path / "mine.yaml"))
    assert recipes[0] == recipes[1]
    assert recipes[0].name == "mine" and recipes[0].stages["caps"].d1 == 4


@pytest.mark.parametrize(
    ("given", "batches"), [(4, (4,)), ("1,32", (1, 32)), ([1, 2], (1, 2)), (" 8 , 9 ", (8, 9))]
)
def test_batch_sizes(given, batches):
    assert parse_options(ProfileOptions, {"batch": given}).batch == batches


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (PruneOptions, {"flops": 0.0}, "--flops 0.0 is not accepted; it should be greater than 0."),
        (PruneOptions, {"flops": float("nan")}, "--flops nan is not accepted"),
        (PruneOptions, {"round-to": 0}, "--round-to 0 is not accepted"),
        (PruneOptions, {"max-rate": 1.0}, "--max-rate 1.0 is not accepted; it should be less than"),
        (TrainOptions, {}, "--model is missing; give it."),
        (ProfileOptions, {"batch": "1,x"}, "--batch 'x' is not accepted"),
        (ProfileOptions, {"batch": ""}, "--batch '' is not accepted"),
    ],
)
def test_what_is_wrong_is_one_sentence(kind, values, said):
    with pytest.raises(RecipeError) as error:
        parse_options(kind, values)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and str(error.value)[-1] in ".?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trian": {}}, "r.yaml: trian is no field of a recipe; did you mean train"),
        ({"train": {"modell": "resnet18"}}, "r.yaml: train.modell is no field of a recipe; did"),
        ({"train": {"model": "resnet18", "image-size": -1}}, "r.yaml: train.image-size -1 is not"),
        ({}, "r.yaml: train is missing; give it."),
        ({"train": None}, "r.yaml: train None is not accepted"),
        ({"train": {"model": "resnet18"}, "prune": None}, "r.yaml: prune None is not accepted"),
        ({"train": {"model": "resnet18"}, "prune": {"flops": 2}}, "r.yaml: prune.flops 2 is not"),
        ({"train": {"model": "resnet18"}, "seed": -1}, "r.yaml: seed -1 is not accepted"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_sentence(content, said):
    with pytest.raises(RecipeError) as error:
        parse_recipe({"name": "r", **content}, "r.yaml: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value) and str(error.value)[-1] in ".?"


def test_a_recipe_has_stages_by_default_and_those_that_it_names():
    def stages(**fields):
        return list(
            parse_recipe({"name": "r", "train": {"model": "resnet18"}, **fields}, "").stages
        )

    assert stages() == ["baseline", "pruned", "caps", "onnx", "profile"]
    assert stages(profile=None) == ["baseline", "pruned", "caps", "onnx"]
    assert stages(analyse={}, attach_linear={})[3:] == ["linear", "onnx", "profile", "analysis"]


HUGE = 10**30
LONG = "x" * 10**6


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (TrainOptions, "image-size"),
        (TrainOptions, "epochs"),
        (TrainOptions, "lr"),
        (TrainOptions, "batch-size"),
        (PruneOptions, "primary-caps"),
        (PruneOptions, "d1"),
        (PruneOptions, "latency"),
        (PruneOptions, "candidates"),
        (PruneOptions, "reduction-factor"),
        (PruneOptions, "round-to"),
        (PruneOptions, "bn-batches"),
        (PruneOptions, "workers"),
        (AttachCapsOptions, "iterations"),
        (AttachCapsOptions, "d2"),
        (ExportOptions, "opset"),
        (ProfileOptions, "batch"),
        (ProfileOptions, "repeats"),
        (AnalyseOptions, "images"),
        (EvaluateOptions, "batch-size"),
        (InspectOptions, "image-size"),
        (InspectOptions, "classes"),
        (SessionOptions, "seed"),
    ],
)
@pytest.mark.parametrize("value", [HUGE, str(HUGE), 1e308, float("inf"), float("nan"), "9" * 5000])
def test_every_number_has_a_bound(kind, field, value):
    values = {"model": "resnet18"} if kind is TrainOptions else {}
    with pytest.raises(RecipeError, match=f"--{field} .* is not accepted") as error:
        parse_options(kind, {**values, field: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [LONG, "a/" * 3000, "nul\0", f"folder/{'é' * 200}", "caf\udce9"])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (TrainOptions, "data-root"),
        (PruneOptions, "strategy"),
        (ImportOptions, "checkpoint"),
        (ExportOptions, "output"),
        (RunOptions, "runs-dir"),
    ],
)
def test_a_path_is_one_that_a_file_can_have(kind, field, value):
    values = {"model": "resnet18"} if kind in (TrainOptions, ImportOptions) else {}
    with pytest.raises(RecipeError, match=f"--{field} .* is not accepted") as error:
        parse_options(kind, {**values, field: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [LONG, "nul\0", "caf\udce9"])
@pytest.mark.parametrize("field", ["model", "data", "weights"])
def test_a_text_has_a_bound(field, value):
    with pytest.raises(CapspruneError) as error:
        parse_options(TrainOptions, {"model": "resnet18", field: value})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", [*HOSTILE.values(), "a: b\n---\nc: d", "train: 2024-13-45"])
def test_what_is_no_recipe_is_one_sentence(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    for read in (read_recipe, read_sweep_recipe):
        with pytest.raises(CapspruneError) as error:
            read(tmp_path / "r.yaml")
        assert "r.yaml" in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_only_a_regular_file_of_bounded_size_is_a_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text(f"name: {'x' * 300_000}")
    for path, said in (
        (tmp_path / "pipe", "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "large", "is larger than"),
        (tmp_path / "nul\0", "check the path"),
    ):
        with pytest.raises(RecipeError, match=said):
            read_recipe(path)


def test_a_sweep_has_a_bounded_grid(tmp_path):
    path = tmp_path / "s.yaml"
    numbers = list(range(1001))
    for text, said in (
        (f"backbones: resnet18\nseeds: {numbers}", "at most 1000 items"),
        (f"backbones: resnet18\nseeds: {numbers[:120]}\npruned: {numbers[:99]}", "cells"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_sweep_recipe(path)


def test_unknown_names_have_neighbours():
    with pytest.raises(CapspruneError, match="did you mean mobilenet_v1"):
        parse_options(TrainOptions, {"model": "mobilenet-v1"})
    with pytest.raises(CapspruneError, match="did you mean fashion-mnist"):
        parse_options(TrainOptions, {"model": "resnet18", "data": "fashionmnist"})


def test_every_option_has_help():
    for model in (TrainOptions, PruneOptions, ProfileOptions):
        for name, field in model.model_fields.items():
            assert field.description and re.match(r"[A-Z]", field.description), name
