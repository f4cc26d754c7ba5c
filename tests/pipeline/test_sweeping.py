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
