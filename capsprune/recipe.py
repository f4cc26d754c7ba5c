"""Recipes: YAML files that hold the options of a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from capsprune.bounds import Seed, Text
from capsprune.files import BadFileError, read_text
from capsprune.options import (
    AnalyseOptions,
    AttachCapsOptions,
    AttachLinearOptions,
    ExportOptions,
    Options,
    ProfileOptions,
    PruneOptions,
    RecipeError,
    TrainOptions,
    parse_options,
)

#: The largest recipe that is read, in bytes.
_RECIPE_LIMIT = 2**18


class Recipe(Options):
    """A whole run: the options of its stages under the stages' names."""

    name: Text = Field(description="Name of the run.")
    seed: Seed = 0
    train: TrainOptions
    prune: PruneOptions = Field(default_factory=PruneOptions)
    attach_caps: AttachCapsOptions = Field(default_factory=AttachCapsOptions)
    #: Done where the recipe names them.
    attach_linear: AttachLinearOptions | None = None
    export: ExportOptions = Field(default_factory=ExportOptions)
    profile: ProfileOptions | None = Field(default_factory=ProfileOptions)
    analyse: AnalyseOptions | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: if the file is missing, is no YAML, or a field of it is unknown or wrong.
    """
    content = read_yaml(path)
    if "backbones" in content:
        raise RecipeError(f"{path} is the recipe of a sweep; give it to 'capsprune sweep'.")
    return parse_options(Recipe, {"name": path.stem, **content}, f"{path}: ")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the fields of a recipe, unchecked.

    Raises:
        RecipeError: if the file is missing, is no YAML, or has no fields.
    """
    from capsprune.plain_yaml import parse_yaml

    try:
        content = parse_yaml(read_text(path, _RECIPE_LIMIT))
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}; check the path.") from None
    except BadFileError as error:
        raise RecipeError(f"{path} {error}; a recipe is a small YAML file.") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds no recipe; give the stages' options under their names, as in "
            "recipes/quickstart.yaml."
        )
    return content
