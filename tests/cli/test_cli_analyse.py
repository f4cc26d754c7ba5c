"""`analyse` on a small run: what it finds, beside a linear baseline or without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_runner import call

FOUND = {
    *("images", "model", "data", "frozen", "bottleneck_entropy", "active_share"),
    *("coupling_entropy", "agreement_true", "agreement_other", "primary_length"),
    *("never_active", "never_active_share", "primary_capsules", "robustness"),
    *("network", "accuracy_by_iteration"),
}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path


def test_analysis_is_left_in_one_file_and_agrees_with_the_run(copied: Path) -> None:
    run = copied / "runs" / "default"
    outcome = call("analyse", "--json", folder=copied)
    assert outcome.code == 0, outcome.err
    found = json.loads((run / "analysis.json").read_text())
    assert set(found) == FOUND
    assert json.loads(outcome.out).items() >= found.items()
    caps = json.loads((run / "run.json").read_text())["stages"]["caps"]["summary"]
    assert found["images"] == caps["images"]
    assert found["primary_capsules"] == caps["primary_capsules"]
    rows = found["robustness"]
    assert rows[0] == {
        **{"distortion": "none", "amount": 0, "unit": ""},
        **{"capsules": caps["accuracy"], "linear": None},
    }
    assert [row["distortion"] for row in rows].count("rotation") == 4
    assert 0 < found["bottleneck_entropy"] <= 1
    assert 0 < found["active_share"] < 1
    assert len(found["coupling_entropy"]) == len(found["agreement_true"]) == 3
    assert "done already" in call("analyse", folder=copied).err


def test_a_linear_baseline_that_comes_later_is_shown_the_same_images(copied: Path) -> None:
    analyse = ("analyse", "--images", 50)
    alone = call(*analyse, "--json", folder=copied)
    assert alone.code == 0, alone.err
    for freeze in ("--freeze", "--finetune"):
        linear = ("attach-linear", freeze, "--epochs", 1, "--overwrite", "--json")
        outcome = call(*linear, folder=copied)
        assert outcome.code == 0, outcome.err
        again = call(*analyse, folder=copied)
        if freeze == "--freeze":  # the trunk of the capsule network was finetuned
            assert again.code == 0
            assert "left out" in again.err and "done already" in again.err
    assert again.code == 2
    assert "finished analysis" in again.err and "--overwrite" in again.err
    described = json.loads((copied / "runs/default/linear/architecture.json").read_text())
    assert described["head"] == {"kind": "linear"}
    costs = json.loads(call("inspect", "--json", folder=copied).out)["linear"]
    channels = described["channels"]["layers.12.conv2"]["out"]
    assert costs["forward_macs"] - costs["trunk_macs"] == 10 * channels
    table = call(*analyse, "--overwrite", folder=copied)
    assert table.code == 0, table.err
    assert "linear" in table.out
    found = json.loads((copied / "runs" / "default" / "analysis.json").read_text())
    assert found["images"] == 50
    rows = found.pop("robustness")
    assert all(0 <= row["linear"] <= 1 for row in rows)
    # All the rest is as before.
    before = json.loads(alone.out)
    assert [row | {"linear": None} for row in rows] == before.pop("robustness")
    assert before.items() >= found.items()


def test_nothing_is_analysed_without_capsules(copied: Path) -> None:
    record_path = copied / "runs" / "default" / "run.json"
    record = json.loads(record_path.read_text())
    del record["stages"]["caps"]
    record_path.write_text(json.dumps(record))
    for arguments, words in (
        ((), "'capsprune attach-caps'"),
        (("--images", 0), "--images"),
        (("--run", "other"), "no run 'other'"),
    ):
        outcome = call("analyse", *arguments, folder=copied)
        assert outcome.code == 2
        assert outcome.out == "" and "Traceback" not in outcome.err
        (line,) = outcome.err.strip().splitlines()
        assert line.startswith("Error: ") and words in line
    assert not (copied / "runs" / "default" / "analysis.json").exists()
