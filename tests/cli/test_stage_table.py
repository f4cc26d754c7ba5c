"""A stage of another package has what this package's stages have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import call
from open_tables import restored
from pydantic import Field

from capsprune.errors import CapspruneError, RunError
from capsprune.options import Options, SessionOptions
from capsprune.pipeline.commands import Outcome, run_command
from capsprune.pipeline.session import Session
from capsprune.pipeline.stage import Stage
from capsprune.recipe import parse_recipe
from capsprune.records import StageRecord
from capsprune.run import open_run, read_run
from capsprune.stages import COMMANDS, STAGES, Command, StageKind, add_stage
from capsprune.summaries import NetworkSummary, StageSummary

NETWORK = {"model": "tiny", "data": "digits", "forward_macs": 1, "parameters": 1}


class DoubledSummary(StageSummary):
    """What the toy gives."""

    value: int


class DoubleOptions(Options):
    """Options of the toy."""

    factor: int = Field(2, description="Times how much.")


def double(options: DoubleOptions, session: Session) -> StageRecord:
    before = session.run.require("baseline", "double")
    stage = Stage.of(session, "doubled", options, before.id)
    if record := stage.done():
        return record
    result = stage.begin() / "doubled.json"
    value = options.factor * before.summary_as(NetworkSummary).parameters
    result.write_text(json.dumps(value))
    return stage.commit(result, f"{before.id} times {options.factor}", {"value": value})


def show(outcome: Outcome, verbose: bool) -> None:
    print(f"It is {outcome.summary.value}.")


TOY = StageKind(
    "doubled",
    Command(
        "double",
        DoubleOptions,
        SessionOptions,
        double,
        "Multiply the parameters.",
        show,
        stage="doubled",
    ),
    summary=DoubledSummary,
    follows=("baseline",),
    is_file=True,
    title="Doubled",
)


@pytest.fixture
def _toy() -> Iterator[None]:
    with restored(STAGES, COMMANDS):
        add_stage(TOY)
        yield


def make_baseline(runs: Path, id: str) -> None:
    with open_run(runs, "default", create=True) as run:
        result = run.begin("baseline", {}, None) / "result"
        result.mkdir()
        run.commit(
            *("baseline", result),
            **{"id": id, "options": {}, "parent": None, "seconds": 1.0, "summary": NETWORK},
        )


@pytest.mark.usefixtures("_toy")
def test_a_stage_from_outside_has_a_command_and_goes_stale(tmp_path: Path) -> None:
    def cli(*arguments: object) -> Any:
        return call(*arguments, folder=tmp_path)

    assert "double" in cli("--help").out and "Multiply the parameters." in cli("--help").out
    assert "Times how much." in cli("double", "--help").out
    missing = cli("double")
    assert missing.code == 2 and "There is no run 'default'" in missing.err

    make_baseline(tmp_path / "runs", "b1")
    done = cli("double", "--factor", 3)
    assert (done.code, done.out) == (0, "It is 3.\n"), done.err
    assert (tmp_path / "runs" / "default" / "doubled.json").read_text() == "3"
    assert "doubled" in cli("runs").out
    assert json.loads(cli("runs", "--json").out) == {"default": ["baseline", "doubled"]}

    again = cli("double", "--factor", 3, "--json")
    assert again.code == 0 and "doubled is done already" in again.err
    assert json.loads(again.out)["value"] == 3
    other = cli("double", "--factor", 4)
    assert other.code == 2 and "made with factor 3 instead of 4" in other.err

    make_baseline(tmp_path / "runs", "b2")
    with pytest.raises(RunError, match="doubled of run 'default' was made from an older baseline"):
        read_run(tmp_path / "runs", "default").require("doubled", "report")
    stale = cli("double", "--factor", 3)
    assert stale.code == 2 and "made with an older input" in stale.err
    assert cli("double", "--factor", 3, "--overwrite").code == 0
    assert read_run(tmp_path / "runs", "default").stages["doubled"].id == "b2 times 3"


@pytest.mark.usefixtures("_toy")
def test_a_stage_from_outside_has_a_place_in_recipes() -> None:
    content = {"name": "r", "train": {"model": "resnet18"}, "double": {"factor": 5}}
    recipe = parse_recipe(content, "")
    assert recipe.stages["doubled"] == DoubleOptions(factor=5)
    with pytest.raises(CapspruneError, match=r"double\.facter is no field .* did you mean factor"):
        parse_recipe({**content, "double": {"facter": 5}}, "")


def test_what_a_plug_in_that_is_gone_made_stays(tmp_path: Path) -> None:
    make_baseline(tmp_path, "b1")
    path = tmp_path / "default" / "run.json"
    content = json.loads(path.read_text())
    content["stages"]["doubled"] = {
        "options": {"factor": 2},
        "parent": "b1",
        "id": "d1",
        "finished": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "summary": {"value": [1, {"a": None}]},
    }
    path.write_text(json.dumps(content))
    (tmp_path / "default" / "doubled.json").write_text("2")

    make_baseline(tmp_path, "b2")
    again = json.loads(path.read_text())
    assert again["stages"]["doubled"] == content["stages"]["doubled"]
    run = read_run(tmp_path, "default")
    assert run.path("doubled").read_text() == "2"
    assert "doubled" in call("runs", "--runs-dir", tmp_path, folder=tmp_path).out
    assert run.kept_beside("doubled") == ["baseline"]
    with pytest.raises(RunError, match="needs pruned"):
        run.require("pruned", "attach-caps")


def test_python_runs_a_command_by_name(tmp_path: Path) -> None:
    make_baseline(tmp_path, "b1")
    with pytest.raises(CapspruneError, match=r"has no option 'epoch'; it has .*epochs"):
        run_command("train", {"model": "resnet18", "epoch": 1})
    with pytest.raises(RunError, match=r"export needs caps"):
        run_command("export", {"runs_dir": tmp_path})
    with pytest.raises(CapspruneError, match="Unknown command 'exprot'; did you mean export"):
        run_command("exprot", {})


@pytest.mark.parametrize("name", [*STAGES])
def test_each_stage_says_what_makes_it(name: str) -> None:
    kind = STAGES[name]
    assert kind.command.stage == kind.name == name
    assert COMMANDS[kind.command.name] is kind.command
    assert callable(kind.function) and callable(kind.command.show)
    assert all(stage in STAGES for stage in kind.follows)
