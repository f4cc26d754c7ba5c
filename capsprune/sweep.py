"""A sweep: a grid of runs in one folder, the recipe it was made from, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from capsprune.bounds import FilePath, Seed, Text
from capsprune.errors import CapspruneError
from capsprune.files import BadFileError, dump_json, make_folder, read_json, write_text
from capsprune.option_types import (
    BatchSize,
    LearningRate,
    ModelName,
    PositiveEpochs,
    Precision,
    hyphenated,
)
from capsprune.options import (
    AnalyseOptions,
    ExportOptions,
    Options,
    ProfileOptions,
    RecipeError,
    parse_options,
)
from capsprune.recipe import Recipe, parse_recipe, read_yaml
from capsprune.records import StageName
from capsprune.run import Run, list_readable, list_runs
from capsprune.run_folder import check_name, is_run
from capsprune.stages import STAGES

TrunkKind = Literal["frozen", "finetuned"]

_SWEEP_FILE = "sweep.json"
_PROFILE = "profile.json"
#: Fields that the grid fills in, by stage.
_OF_THE_GRID = {
    "train": ("model",),
    "prune": ("model", "data", "data-root", "image-size", "flops", "strategy"),
    "attach-caps": ("freeze", "checkpoint"),
    "prune-caps": ("checkpoint",),
}
#: A sweep may grow along these; all else stays as it was begun.
_MAY_GROW = ("backbones", "pruned", "seeds", "trunks", "published", "slim")
#: Of these, what has a name already stays as it was begun.
_NAMED = ("trunks", "slim")
#: Stages that a cell has from a run which it shares with others.
_SHARED: tuple[StageName, ...] = ("baseline", "pruned")
#: Stages of a cell whose capsule network is pruned: the network, and its ONNX file.
_SLIM: tuple[StageName, ...] = ("slim", "onnx")

_MAX_LENGTH = 1000
_MAX_CELLS = 10_000
#: Of what the grid runs over.
_LENGTH = Field(min_length=1, max_length=_MAX_LENGTH)


class SweepError(CapspruneError):
    """A sweep is not there, is another than was asked for, or has cells that failed."""


class DamagedSweep(SweepError):
    """What is known of a sweep cannot be read."""


def _distinct(value: Any) -> Any:
    """Read one value as a list of one, and a value that stands there twice once."""
    values = value if isinstance(value, list | tuple) else (value,)
    if len(values) > _MAX_LENGTH:
        return values  # to be refused
    return [value for n, value in enumerate(values) if value not in values[:n]]


class TrunkOptions(Options):
    """How a head is trained on one kind of trunk: capsules and the linear baseline alike."""

    epochs: PositiveEpochs | None = None
    lr: LearningRate = None
    batch_size: BatchSize = None


def _both_kinds() -> dict[TrunkKind, TrunkOptions]:
    return {"frozen": TrunkOptions(), "finetuned": TrunkOptions()}


class Published(Options):
    """What others published for a backbone and a pruned level."""

    #: A strategy.json, relative to the recipe.
    strategy: FilePath | None = None
    #: Name of a state dict, in the folder that --checkpoints names.
    checkpoint: Text | None = None


def _by_name(value: Any) -> Any:
    """Give a list of sizes by their names: those that they have, or what they ask for."""
    if not isinstance(value, list | tuple) or len(value) > _MAX_LENGTH:
        return value  # as a file has it, or to be refused
    found: dict[str, Any] = {}
    for size in value:
        if not isinstance(size, Mapping):
            raise ValueError("it should be a list of options of prune-caps")
        options = {hyphenated(str(key)): option for key, option in size.items()}
        name = options.pop("name", None) or "-".join(f"{k}-{v}" for k, v in options.items())
        name = re.sub(r"[^A-Za-z0-9._]+", "-", str(name)).strip("-.")
        if found.setdefault(name, options) != options:
            raise ValueError(f"two of its sizes have the name '{name}'; name them apart")
    return found


class SweepRecipe(Options):
    """A grid of runs: backbones x pruned FLOPs x kinds of trunk x seeds.

    Each capsule network of the grid may be pruned to several sizes, a run each.
    """

    name: Text = Field(description="Name of the sweep, and of its folder.")
    backbones: Annotated[tuple[ModelName, ...], BeforeValidator(_distinct), _LENGTH]
    #: Per cent of the FLOPs that are removed.
    pruned: Annotated[
        tuple[Annotated[int, Field(ge=0, le=99)], ...],
        BeforeValidator(_distinct),
        _LENGTH,
    ] = (0, 25, 50, 75)
    trunks: Annotated[dict[TrunkKind, TrunkOptions], Field(min_length=1)] = Field(
        default_factory=_both_kinds
    )
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_distinct), _LENGTH] = (0,)
    #: Options of the stages, but for what the grid fills in.
    train: dict[str, Any] = Field(default_factory=dict)
    prune: dict[str, Any] = Field(default_factory=dict)
    attach_caps: dict[str, Any] = Field(default_factory=dict)
    prune_caps: dict[str, Any] = Field(default_factory=dict)
    #: Further options of prune-caps, by the name of a size.
    slim: Annotated[
        dict[Text, dict[str, Any]], BeforeValidator(_by_name), Field(max_length=_MAX_LENGTH)
    ] = Field(default_factory=dict)
    export: ExportOptions = Field(default_factory=ExportOptions)
    analyse: AnalyseOptions = Field(default_factory=AnalyseOptions)
    profile: ProfileOptions = Field(default_factory=ProfileOptions)
    #: By backbone and per cent pruned.
    published: dict[ModelName, dict[int, Published]] = Field(default_factory=dict)

    @property
    def cells(self) -> tuple[GridCell, ...]:
        """The cells of the grid, seed by seed, those that are made from a cell behind it."""
        return tuple(
            GridCell(backbone, pruned, trunk, seed, slim)
            for seed in self.seeds
            for backbone in self.backbones
            for pruned in self.pruned
            for trunk in self.trunks
            for slim in ("", *self.slim)
        )

    def cell_recipe(self, cell: GridCell, where: str = "") -> Recipe:
        """Give the recipe of a cell's run.

        Args:
            cell: which cell.
            where: name of the recipe, for messages.

        Raises:
            RecipeError: if an option of a stage is unknown or wrong.
        """
        trunk = self.trunks[cell.trunk].model_dump(exclude_none=True)
        head = {**trunk, "freeze": cell.trunk == "frozen"}
        strategy = self.published_for(cell).strategy
        size: dict[str, Any] = {"flops": 1 - cell.pruned / 100}
        if strategy is not None and cell.pruned:
            size = {"strategy": strategy}
        slim = {"prune-caps": {**self.prune_caps, **self.slim[cell.slim]}} if cell.slim else {}
        return parse_recipe(
            {
                "name": cell.name,
                "seed": cell.seed,
                "train": {**self.train, "model": cell.backbone},
                "prune": {**self.prune, **size},
                "attach-caps": {**self.attach_caps, **head},
                "attach-linear": head,
                **slim,
                "export": self.export.model_dump(),
                "profile": None,
                "analyse": self.analyse.model_dump(),
            },
            where,
        )

    def published_for(self, cell: GridCell) -> Published:
        """Give what others published for a cell's backbone."""
        return self.published.get(cell.backbone, {}).get(cell.pruned, Published())


class _SweepFile(BaseModel):
    """What stands in a sweep's file."""

    format: Literal[1] = 1
    recipe: SweepRecipe
    #: Why a run is not finished, by its name.
    failed: dict[str, str]
    precision: Precision = "32-true"


@dataclass(frozen=True)
class GridCell:
    """One cell of the grid."""

    backbone: str
    #: Per cent of the FLOPs that are removed.
    pruned: int
    trunk: TrunkKind
    seed: int
    #: Name of the size to which its capsule network is pruned; empty where it is not.
    slim: str = ""

    @property
    def whole(self) -> GridCell:
        """The cell that has its capsule network as it was before it was pruned."""
        return replace(self, slim="")

    @property
    def shared(self) -> tuple[StageName, ...]:
        """Stages that it has from a run which it shares with others, where that has them."""
        return (*_SHARED, "caps") if self.slim else _SHARED

    @property
    def stages(self) -> tuple[StageName, ...]:
        """Stages that make it a finished cell, its own and those that it shares."""
        if self.slim:
            return (*self.shared[1:], *_SLIM)
        return tuple(name for name in STAGES if STAGES[name].in_cells)

    @property
    def baseline_name(self) -> str:
        """Name of the run whose baseline the cell shares."""
        return f"{self.backbone}-s{self.seed}"

    @property
    def pruned_name(self) -> str:
        """Name of the run whose pruned backbone the cell shares."""
        return f"{self.backbone}-{self.pruned}-s{self.seed}"

    @property
    def name(self) -> str:
        """Name of the cell's run."""
        slim = f"-{self.slim}" if self.slim else ""
        return f"{self.backbone}-{self.pruned}-{self.trunk}{slim}-s{self.seed}"


def read_sweep_recipe(path: Path) -> SweepRecipe:
    """Read a sweep's recipe, and check the options of every cell.

    Raises:
        RecipeError: if the file is missing, is no YAML, or a field of it is unknown or wrong.
        RunError: if its name is none for a folder.
    """
    content = read_yaml(path)
    where = f"{path}: "
    training = content.get("train")
    if "backbones" not in content and isinstance(training, dict) and "model" in training:
        raise RecipeError(f"{path} is the recipe of one run; give it to 'capsprune run'.")
    for stage, fields in _OF_THE_GRID.items():
        options = content.get(stage)
        given = [field for field in fields if isinstance(options, dict) and field in options]
        if given:
            raise RecipeError(
                f"{where}{stage}.{given[0]} follows from the grid; leave it out, and give "
                "backbones, pruned and trunks."
            )
    recipe = parse_options(SweepRecipe, {"name": path.stem, **content}, where)
    check_name(recipe.name, "sweep")
    folder = path.resolve().parent
    published = {
        backbone: {
            pruned: found
            if found.strategy is None
            else found.model_copy(update={"strategy": (folder / found.strategy).resolve()})
            for pruned, found in levels.items()
        }
        for backbone, levels in recipe.published.items()
    }
    recipe = recipe.model_copy(update={"published": published})
    cells = recipe.cells
    if len(cells) > _MAX_CELLS:
        raise RecipeError(
            f"{path} makes a grid of {len(cells)} cells; give fewer than {_MAX_CELLS}."
        )
    for cell in cells:
        recipe.cell_recipe(cell, where)
    return recipe


class Sweep:
    """The folder of a sweep. Make one with `open_sweep` or `read_sweep`."""

    def __init__(
        self,
        directory: Path,
        recipe: SweepRecipe,
        failed: Mapping[str, str],
        precision: str = "32-true",
    ) -> None:
        """Use `open_sweep` or `read_sweep`."""
        self.directory = directory
        #: Of training, as `capsprune.training.device.make_fabric` takes it.
        self.precision = precision
        self.recipe = recipe
        #: Why a run of the sweep is not finished, by its name, where it failed.
        self.failed = dict(failed)

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.directory.name

    @property
    def cells(self) -> tuple[GridCell, ...]:
        """The cells of the grid."""
        return self.recipe.cells

    @property
    def profile_path(self) -> Path:
        """Where the latencies of the cells lie, once they are measured."""
        return self.directory / _PROFILE

    def read_runs(self) -> tuple[dict[str, Run], dict[str, str]]:
        """Read the runs that are there, as they are now.

        Returns:
            Those that can be read, and what is wrong with the others, by name.
        """
        runs, damaged = list_runs(self.directory)
        return {run.name: run for run in runs}, damaged

    def done(self, runs: Mapping[str, Run]) -> dict[str, bool]:
        """Tell whether each cell is finished, by name.

        Args:
            runs: from `read_runs`.
        """
        return {
            cell.name: cell.name in runs and set(cell.stages) <= set(runs[cell.name].stages)
            for cell in self.cells
        }

    def write(self) -> None:
        """Note the recipe, and what failed."""
        content = {
            "format": 1,
            "recipe": self.recipe.model_dump(mode="json", by_alias=True),
            "precision": self.precision,
            "failed": self.failed,
        }
        make_folder(self.directory)
        write_text(self.directory / _SWEEP_FILE, dump_json(content, indent=1) + "\n")


def is_sweep(directory: Path) -> bool:
    """Tell whether a folder holds a sweep."""
    return (directory / _SWEEP_FILE).is_file()


def list_sweeps(root: Path) -> tuple[list[Sweep], dict[str, str]]:
    """Read every sweep below a folder, by name.

    Returns:
        Those that can be read, and what is wrong with the others, by name.
    """
    return list_readable(root, is_sweep, lambda directory: read_sweep(root, directory.name))


def read_sweep(runs_dir: Path, name: str) -> Sweep:
    """Read a sweep.

    Raises:
        SweepError: if there is none of this name, or it is damaged.
    """
    directory = runs_dir / name
    if not is_sweep(directory):
        raise SweepError(
            f"There is no sweep '{name}' in {runs_dir}; start one with 'capsprune sweep RECIPE'."
        )
    try:
        content = _SweepFile.model_validate(read_json(directory / _SWEEP_FILE))
        return Sweep(directory, content.recipe, content.failed, content.precision)
    except (ValidationError, BadFileError, CapspruneError) as error:
        raise DamagedSweep(
            f"{directory / _SWEEP_FILE} is damaged; remove it, and give the sweep's recipe again: "
            "its finished runs are kept."
        ) from error


def open_sweep(runs_dir: Path, recipe: SweepRecipe, precision: str = "32-true") -> Sweep:
    """Make the sweep of a recipe, or go on with it.

    Args:
        runs_dir: the folder of all runs.
        recipe: of the sweep.
        precision: of training.

    Raises:
        SweepError: if the sweep was begun with other options (its grid may have grown), or there is
            a run of that name.
    """
    directory = runs_dir / recipe.name
    if is_run(directory):
        raise SweepError(
            f"There is a run '{recipe.name}' in {runs_dir} already; give the recipe another name."
        )
    if not is_sweep(directory):
        return Sweep(directory, recipe, {}, precision)
    before = read_sweep(runs_dir, recipe.name)
    asked = recipe.model_dump(mode="json", by_alias=True)
    had = before.recipe.model_dump(mode="json", by_alias=True)
    # What the sizes have in common is open until there is one.
    may_grow = _MAY_GROW if had["slim"] else (*_MAY_GROW, "prune-caps")
    changed = [key for key in asked if key not in may_grow and asked[key] != had[key]]
    changed += [
        f"{key}.{name}"
        for key in _NAMED
        for name, options in asked[key].items()
        if name in had[key] and options != had[key][name]
    ]
    if precision != before.precision:
        changed.append("--precision")
    if changed:
        raise SweepError(
            f"Sweep '{recipe.name}' was begun with other options ({', '.join(changed)}); give the "
            "recipe another name, or remove that sweep."
        )
    return Sweep(directory, recipe, before.failed, precision)
