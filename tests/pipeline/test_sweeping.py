"""A grid of runs on a small network, its jobs done in this process."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file
from toy_pipeline import Listener

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import CapspruneError
from capsprune.pipeline import sweeping
from capsprune.run import read_run
from capsprune.sweep import SweepError, read_sweep_recipe

RECIPE = """
backbones: toy
pruned: [0, 50]
trunks: {frozen: {epochs: 1}}
train: {data: colours, epochs: 1}
prune: {candidates: 2, round-to: 1, epochs: 0}
analyse: {images: 6}
profile: {batch: [1], repeats: 1, provider: cpu}
"""
BASELINE = "toy-baseline-s0"


@pytest.fixture
def done(monkeypatch):
    """Names of the jobs that were done, one after the other, in this process; those in `fails`
    raise instead of working."""

    class Done(list):
        fails = frozenset()

    names = Done()

    def run_jobs(jobs, count, progress, title, on_end):
        failed = {}
        for job in jobs:
            reason = None
            if any(need in failed for need in job.needs):
                reason = "not begun"
            elif job.name in names.fails:
                reason = "told to fail"
            else:
                names.append(job.name)
                try:
                    job.work(progress, 0)
                except CapspruneError as error:
                    reason = str(error)
            if reason is not None:
                failed[job.name] = reason
            on_end(job, reason)
        return failed

    monkeypatch.setattr(sweeping, "run_jobs", run_jobs)
    # The runtime is tested elsewhere, and takes longer than all else here.
    monkeypatch.setattr(sweeping, "profile_variants", lambda *given, **options: [])
    return names


def sweep(folder, text=RECIPE, **values):
    folder.mkdir(exist_ok=True)
    path = folder / "grid.yaml"
    path.write_text(text)
    recipe = read_sweep_recipe(path)
    return sweeping.sweep(recipe, folder / "runs", device="cpu", progress=Listener(), **values)


@pytest.mark.usefixtures("toys")
def test_a_grid_is_made_once_and_what_is_lacking_again(tmp_path, done):
    made = sweep(tmp_path)
    cells = [cell.name for cell in made.recipe.cells]
    assert made.failed == {}
    assert len(done) == len(set(done)) == 6  # a baseline, two pruned backbones and cells, a profile
    runs, damaged = made.read_runs()
    assert damaged == {}
    for cell in cells:
        assert {"baseline", "pruned", "caps", "linear", "onnx", "analysis"} <= set(
            runs[cell].stages
        )
    # Cells have their baseline from one training.
    assert len({runs[cell].stages["baseline"].id for cell in cells}) == 1
    profile = json.loads(made.profile_path.read_text())
    assert len(profile["variants"]) == 4 and profile["measurements"] == []

    done.clear()
    sweep(tmp_path)
    assert [name for name in done if "toy" in name] == []
    runs[cells[1]].path("analysis").unlink()
    done.clear()
    assert sweep(tmp_path).failed == {}
    assert cells[1] in done and cells[0] not in done


@pytest.mark.usefixtures("toys")
def test_what_fails_is_noted_until_it_is_made(tmp_path, done):
    first = sweep(tmp_path, RECIPE.replace("[0, 50]", "[0]"))
    cell = first.recipe.cells[0]
    done.clear()
    grown = next(c for c in read(tmp_path, RECIPE).cells if c.pruned == 50)
    done.fails = frozenset({grown.pruned_name})
    made = sweep(tmp_path)
    assert made.failed[grown.pruned_name] == "told to fail"
    assert made.failed[grown.name] == "not begun"
    assert cell.name not in done
    done.fails = frozenset()
    assert sweep(tmp_path).failed == {}


SLIM = """
attach-caps: {d1: 2, d2: 4}
prune-caps: {candidates: 2, round-to: 1, epochs: 0}
slim: [{capsules: 2, iterations: 3}]
"""


@pytest.mark.usefixtures("toys")
def test_the_capsule_network_of_a_cell_is_pruned_in_a_run_of_its_own(tmp_path, done):
    text = RECIPE.replace("[0, 50]", "[0]") + SLIM
    made = sweep(tmp_path, text)
    whole, slim = made.recipe.cells
    assert made.failed == {} and slim.whole == whole
    assert done.index(whole.name) < done.index(slim.name)
    runs, _ = made.read_runs()
    for stage in slim.shared:
        assert runs[slim.name].stages[stage].id == runs[whole.name].stages[stage].id
    weights = [runs[cell.name].path("caps") / "model.safetensors" for cell in (whole, slim)]
    assert weights[0].samefile(weights[1])
    assert runs[slim.name].stages["slim"].parent == runs[whole.name].stages["caps"].id
    assert runs[slim.name].stages["onnx"].parent == runs[slim.name].stages["slim"].id
    assert all(made.done(runs).values())
    variants = json.loads(made.profile_path.read_text())["variants"]
    (variant,) = (one for one in variants.values() if one.get("slim"))
    assert variant["run"] == slim.name and len(variants) == 3

    # It goes on where it stopped, and grows; what there is already is not done again.
    done.clear()
    runs[slim.name].path("onnx").rename(tmp_path / "gone")
    grown = sweep(tmp_path, text.replace("iterations: 3}]", "iterations: 3}, {flops: 1}]"))
    assert grown.failed == {}
    assert [name for name in done if "toy" in name] == [cell.name for cell in grown.cells[1:]]


@pytest.mark.usefixtures("toys")
def test_what_a_slim_network_is_made_from_may_fail(tmp_path, done):
    text = RECIPE.replace("[0, 50]", "[0]") + SLIM
    whole, slim = read_cells(tmp_path, text)
    done.fails = frozenset({whole.name})
    assert sweep(tmp_path, text).failed[slim.name] == "not begun"
    done.fails = frozenset()
    made = sweep(tmp_path, text)
    assert made.failed == {}
    weights = read_run(made.directory, whole.name).path("caps") / "model.safetensors"
    weights.unlink()  # of the whole network alone: a link is no copy
    weights.write_bytes(b"broken")
    read_run(made.directory, slim.name).path("onnx").rename(tmp_path / "gone")
    failed = sweep(tmp_path, text).failed
    assert failed[slim.name] == f"not begun, as {whole.name} failed"


def read_cells(folder, text):
    return read(folder, text).cells


def read(folder, text):
    path = folder / "grid.yaml"
    path.write_text(text)
    return read_sweep_recipe(path)


@pytest.mark.usefixtures("toys")
def test_other_options_are_refused(tmp_path, done):
    one = RECIPE.replace("[0, 50]", "[0]")
    done.fails = frozenset({BASELINE})
    sweep(tmp_path, one)
    with pytest.raises(SweepError):
        sweep(tmp_path, one.replace("candidates: 2", "candidates: 3"))
    with pytest.raises(SweepError):
        sweep(tmp_path, one, precision="bf16-mixed")


@pytest.mark.usefixtures("toys")
def test_what_others_published_is_imported(tmp_path, done, finished):
    file = tmp_path / "toy.safetensors"
    save_file(load_checkpoint(finished.path("pruned")).network.state_dict(), file)
    text = RECIPE.replace("[0, 50]", "[50]")
    text += "published: {toy: {50: {checkpoint: toy.safetensors}}}\n"
    made = sweep(tmp_path / "grid", text, checkpoints=tmp_path)
    assert made.failed == {}
    (cell,) = made.recipe.cells
    run = read_run(made.directory, cell.name)
    assert "baseline" not in run.stages
    plain = json.loads((run.directory / "run.json").read_text())
    assert plain["stages"]["pruned"]["summary"]["imported"] == str(file)
