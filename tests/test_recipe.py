import re
from pathlib import Path

import pytest

from capsprune.errors import CapspruneError
from capsprune.recipe import (
    ProfileOptions,
    PruneOptions,
    Recipe,
    RecipeError,
    TrainOptions,
    parse_options,
    read_recipe,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_it_are_recipes(path):
    assert read_recipe(path).train.model


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
    assert recipes[0].name == "mine" and recipes[0].attach_caps.d1 == 4


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
        (Recipe, {"name": "r", "trian": {}}, "--trian is no field of a recipe; did you mean train"),
    ],
)
def test_what_is_wrong_is_one_sentence(kind, values, said):
    with pytest.raises(RecipeError) as error:
        parse_options(kind, values)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and str(error.value)[-1] in ".?"


def test_unknown_names_have_neighbours():
    with pytest.raises(CapspruneError, match="did you mean mobilenet_v1"):
        parse_options(TrainOptions, {"model": "mobilenet-v1"})
    with pytest.raises(CapspruneError, match="did you mean fashion-mnist"):
        parse_options(TrainOptions, {"model": "resnet18", "data": "fashionmnist"})


def test_every_option_has_help():
    for model in (TrainOptions, PruneOptions, ProfileOptions):
        for name, field in model.model_fields.items():
            assert field.description and re.match(r"[A-Z]", field.description), name
