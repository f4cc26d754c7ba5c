"""Recipes: YAML files that hold the options of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsprune.bounds import Seed, Text, cut
from capsprune.files import BadFileError, read_text
from capsprune.option_types import hyphenated
from capsprune.options import Options, RecipeError, no_such_field, parse_options
from capsprune.stages import STAGES

#: The largest recipe that is read, in bytes.
_RECIPE_LIMIT = 2**18


@dataclass(frozen=True)
class Recipe:
    """A whole run: the options of its stages."""

    name: str
    seed: int
    #: By stage, in the order in which they are done.
    stages: Mapping[str, Options]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data: as its file has it, with what was left open."""
        done = {STAGES[stage].command.field: options for stage, options in self.stages.items()}
        fields = {STAGES[stage].command.field: None for stage in STAGES} | {
            field: options.model_dump(mode="json") for field, options in done.items()
        }
        return {"name": self.name, "seed": self.seed, **fields}


class _Head(Options):
    """What a recipe says beside the options of stages."""

    name: Text
    seed: Seed = 0


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Make a recipe out of plain values.

    Args:
        content: `name`, `seed`, and the options of stages under the names of their commands, with
            hyphens or underscores. A stage that may be left out is, where there is None.
        where: stands before a field's name in messages.

    Raises:
        RecipeError: if a field is unknown, missing or out of range; one sentence for the first.
        CapspruneError: if a model or data set is unknown.
    """
    fields = {STAGES[stage].command.field: stage for stage in STAGES}
    given = {str(key).replace("-", "_"): value for key, value in content.items()}
    known = [*_Head.model_fields, *fields]
    for field in given:
        if field not in known:
            raise no_such_field(where + hyphenated(cut(field, 40)), known)
    head = parse_options(_Head, {k: v for k, v in given.items() if k not in fields}, where)
    stages: dict[str, Options] = {}
    for field, stage in fields.items():
        kind = STAGES[stage]
        values = given.get(field, None if kind.in_recipes == "where named" else {})
        if values is None and kind.in_recipes != "always":
            continue
        label = where + hyphenated(field)
        if field not in given and any(
            f.is_required() for f in kind.command.options.model_fields.values()
        ):
            raise RecipeError(f"{label} is missing; give it.")
        stages[stage] = parse_options(kind.command.options, values, f"{label}.")
    return Recipe(head.name, head.seed, stages)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: if the file is missing, is no YAML, or a field of it is unknown or wrong.
    """
    content = read_yaml(path)
    if "backbones" in content:
        raise RecipeError(f"{path} is the recipe of a sweep; give it to 'capsprune sweep'.")
    return parse_recipe({"name": path.stem, **content}, f"{path}: ")


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
