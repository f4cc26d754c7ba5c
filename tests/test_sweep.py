import json
from pathlib import Path

import pytest

from capsprune.errors import CapspruneError
from capsprune.options import RecipeError
from capsprune.recipe import read_recipe
from capsprune.run import open_run
from capsprune.sweep import (
    GridCell,
    SweepError,
    is_sweep,
    list_sweeps,
    open_sweep,
    read_sweep,
    read_sweep_recipe,
)

RECIPES = Path(__file__).parent.parent / "recipes" / "paper"


def recipe(folder: Path, text: str, name: str = "grid.yaml"):
    path = folder / name
    path.write_text(text)
    return read_sweep_recipe(path)


SMALL = """
backbones: mobilenet_v1
pruned: [0, 50]
seeds: [3, 4]
train: {data: digits, epochs: 2}
prune: {candidates: 5}
attach-caps: {iterations: 2}
trunks:
  frozen: {epochs: 7, lr: 0.5}
  finetuned: {epochs: 8}
"""


def test_the_grid_has_a_run_for_each_cell(tmp_path):
    grid = recipe(tmp_path, SMALL)
    assert grid.name == "grid"
    assert len({cell.name for cell in grid.cells}) == len(grid.cells) == 8
    cell = GridCell("mobilenet_v1", 50, "frozen", 4)
    assert cell in grid.cells and cell.name == "mobilenet_v1-50-frozen-s4"
    run = grid.cell_recipe(cell)
    assert (run.name, run.seed, run.stages["baseline"].model, run.stages["baseline"].epochs) == (
        cell.name,
        4,
        "mobilenet_v1",
        2,
    )
    assert (run.stages["pruned"].flops, run.stages["pruned"].candidates) == (0.5, 5)
    assert run.stages["caps"].freeze and run.stages["caps"].iterations == 2
    # The linear baseline has the budget of the capsules.
    assert "linear" in run.stages
    for head in (run.stages["caps"], run.stages["linear"]):
        assert (head.epochs, head.lr, head.freeze) == (7, 0.5, True)
    other = grid.cell_recipe(GridCell("mobilenet_v1", 0, "finetuned", 3))
    assert other.stages["pruned"].flops == 1 and other.stages["caps"].epochs == 8
    assert not other.stages["caps"].freeze


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prun: {}", r"prun is no field of a recipe; did you mean prune\?"),
        ("train: {epochz: 2}", r"train.epochz is no field of a recipe; did you mean epochs\?"),
        ("trunks: {frozen: {epoch: 1}}", r"trunks.frozen.epoch is no field .* mean epochs\?"),
        ("trunks: {frosen: {}}", r"trunks.frosen 'frosen' is not accepted; it should be 'frozen'"),
        ("pruned: [0, 120]", "pruned 120 is not accepted; it should be less than or equal to 99"),
        ("pruned: []", "pruned"),
        ("train: {model: resnet50}", "train.model follows from the grid; leave it out"),
        ("prune: {flops: 0.5}", "prune.flops follows from the grid; leave it out"),
        ("backbones: resnet5", r"did you mean .*resnet50"),
        ("seeds: -1", "seeds"),
        ("train: 3", "train 3 is not accepted"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, line, said):
    text = line if line.startswith("backbones") else f"backbones: mobilenet_v1\n{line}"
    with pytest.raises(CapspruneError, match=said) as caught:
        recipe(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_two_kinds_of_recipe_are_told_apart(tmp_path):
    with pytest.raises(RecipeError, match="is the recipe of one run; give it to 'capsprune run'"):
        read_sweep_recipe(RECIPES.parent / "quickstart.yaml")
    with pytest.raises(RecipeError, match="is the recipe of a sweep; give it to 'capsprune sweep'"):
        read_recipe(RECIPES / "digits.yaml")


def test_what_stands_twice_is_done_once(tmp_path):
    grid = recipe(tmp_path, "backbones: [mobilenet_v1, mobilenet_v1]\npruned: 50\nseeds: [1, 0, 1]")
    assert grid.seeds == (1, 0) and len(grid.cells) == 4


def test_a_name_is_that_of_a_folder_of_its_own(tmp_path):
    with pytest.raises(CapspruneError, match=r"'\.\./up' is no name for a sweep"):
        recipe(tmp_path, "name: ../up\nbackbones: mobilenet_v1")
    with open_run(tmp_path, "grid", create=True) as run:
        run.begin("baseline", {}, None)
    with pytest.raises(SweepError, match=r"There is a run 'grid' in .* already"):
        open_sweep(tmp_path, recipe(tmp_path, SMALL))


def test_a_sweep_goes_on_with_its_recipe_and_may_grow(tmp_path):
    grid = recipe(tmp_path, SMALL)
    sweep = open_sweep(tmp_path / "runs", grid)
    assert not is_sweep(sweep.directory)
    sweep.failed["mobilenet_v1-s3"] = "why"
    sweep.write()
    again = read_sweep(tmp_path / "runs", "grid")
    assert again.recipe == grid and again.failed == {"mobilenet_v1-s3": "why"}
    assert [one.name for one in list_sweeps(tmp_path / "runs")[0]] == ["grid"]
    assert again.done(again.read_runs()[0]) == dict.fromkeys(
        (cell.name for cell in grid.cells), False
    )

    larger = recipe(tmp_path, SMALL.replace("[0, 50]", "[0, 25, 50]").replace("[3, 4]", "[3]"))
    assert open_sweep(tmp_path / "runs", larger).recipe == larger
    with pytest.raises(SweepError, match=r"begun with other options \(prune\)"):
        open_sweep(
            tmp_path / "runs", recipe(tmp_path, SMALL.replace("candidates: 5", "candidates: 6"))
        )
    with pytest.raises(SweepError, match=r"begun with other options \(trunks.frozen\)"):
        open_sweep(tmp_path / "runs", recipe(tmp_path, SMALL.replace("0.5}", "0.6}")))


SLIM = """
prune-caps: {epochs: 1, capsule-criterion: taylor}
slim:
  - {capsules: 0.5}
  - {primary-rank: 16, capsule_criterion: random}
  - {name: tiny, capsules: 3}
"""


def test_each_capsule_network_is_pruned_to_each_size(tmp_path):
    grid = recipe(tmp_path, SMALL + SLIM)
    assert list(grid.slim) == ["capsules-0.5", "primary-rank-16-capsule-criterion-random", "tiny"]
    assert len(grid.cells) == 8 * 4 == len({cell.name for cell in grid.cells})
    cell = GridCell("mobilenet_v1", 50, "frozen", 4, "tiny")
    assert cell in grid.cells and cell.name == "mobilenet_v1-50-frozen-tiny-s4"
    assert grid.cells.index(cell.whole) < grid.cells.index(cell)
    assert cell.shared == ("baseline", "pruned", "caps")
    assert cell.stages == ("pruned", "caps", "slim", "onnx")
    options = grid.cell_recipe(cell).stages["slim"]
    assert (options.capsules, options.epochs, options.capsule_criterion) == (3, 1, "taylor")
    other = grid.cell_recipe(GridCell("mobilenet_v1", 0, "frozen", 3, [*grid.slim][1]))
    assert other.stages["slim"].capsule_criterion == "random"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("slim: [{capsulse: 3}]", r"capsulse is no field of a recipe; did you mean capsules\?"),
        ("slim: [{capsules: -1}]", "prune-caps.capsules -1 is not accepted"),
        ("slim: [3]", "slim .* it should be a list of options of prune-caps"),
        (
            "slim: [{name: a, capsules: 1}, {name: a, capsules: 2}]",
            "two of its sizes have the name",
        ),
        ("prune-caps: {checkpoint: caps}", "prune-caps.checkpoint follows from the grid"),
    ],
)
def test_what_is_wrong_with_a_size_is_named(tmp_path, line, said):
    with pytest.raises(CapspruneError, match=said) as caught:
        recipe(tmp_path, f"backbones: mobilenet_v1\n{line}")
    assert "\n" not in str(caught.value)


def test_a_sweep_may_grow_by_a_size_and_keeps_those_it_has(tmp_path):
    open_sweep(tmp_path, recipe(tmp_path, SMALL + SLIM)).write()
    assert read_sweep(tmp_path, "grid").recipe == recipe(tmp_path, SMALL + SLIM)
    larger = recipe(tmp_path, SMALL + SLIM + "  - {capsules: 0.05}\n")
    assert len(open_sweep(tmp_path, larger).recipe.slim) == 4
    with pytest.raises(SweepError, match=r"begun with other options \(slim.tiny\)"):
        open_sweep(tmp_path, recipe(tmp_path, SMALL + SLIM.replace("capsules: 3", "capsules: 4")))


def test_a_sweep_of_before_there_were_sizes_goes_on(tmp_path):
    sweep = open_sweep(tmp_path, recipe(tmp_path, SMALL))
    sweep.write()
    stored = json.loads((sweep.directory / "sweep.json").read_text())
    del stored["recipe"]["slim"], stored["recipe"]["prune-caps"]
    (sweep.directory / "sweep.json").write_text(json.dumps(stored))
    assert open_sweep(tmp_path, recipe(tmp_path, SMALL + SLIM)).recipe.slim


def test_a_sweep_keeps_its_precision(tmp_path):
    grid = recipe(tmp_path, SMALL)
    open_sweep(tmp_path, grid, "bf16-mixed").write()
    assert open_sweep(tmp_path, grid, "bf16-mixed").precision == "bf16-mixed"
    assert read_sweep(tmp_path, "grid").precision == "bf16-mixed"
    with pytest.raises(SweepError, match=r"other options \(--precision\)"):
        open_sweep(tmp_path, grid)
    # One of before it was noted.
    path = tmp_path / "grid" / "sweep.json"
    stored = json.loads(path.read_text())
    del stored["precision"]
    path.write_text(json.dumps(stored))
    assert open_sweep(tmp_path, grid).precision == "32-true"


def test_a_damaged_sweep_is_refused(tmp_path):
    sweep = open_sweep(tmp_path, recipe(tmp_path, SMALL))
    sweep.write()
    file = sweep.directory / "sweep.json"
    for text in ("{", "[]", '{"recipe": {"name": "x"}}'):
        file.write_text(text)
        with pytest.raises(SweepError, match="is damaged; remove it"):
            read_sweep(tmp_path, "grid")
    with pytest.raises(SweepError, match="There is no sweep 'other'"):
        read_sweep(tmp_path, "other")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_recipes_are_sound(path):
    grid = read_sweep_recipe(path)
    assert grid.name == path.stem
    for cell in grid.cells:
        options = grid.cell_recipe(cell)
        if options.stages["pruned"].strategy is not None:
            assert options.stages["pruned"].strategy.is_file()
    assert {cell.trunk for cell in grid.cells} == {"frozen", "finetuned"}


def test_the_papers_sizes_and_schedules():
    for name, size in (("cifar10", 64), ("tiny-imagenet", 224)):
        grid = read_sweep_recipe(RECIPES / f"{name}-resnet50.yaml")
        assert grid.pruned == (0, 25, 50, 75)
        assert grid.train["data"] == name and grid.train["image-size"] == size
        rates = {kind: options.lr for kind, options in grid.trunks.items()}
        assert rates == {"frozen": 1e-4, "finetuned": 1e-5}
        assert {options.batch_size for options in grid.trunks.values()} == {128}
        assert {options.epochs for options in grid.trunks.values()} == {100}
