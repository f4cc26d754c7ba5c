"""A package that announces itself adds to every table, and the commands take what it adds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capsprune.tables import PLUGINS

OUTSIDE = Path(__file__).parent.parent / "outside"


@pytest.fixture
def toys(tmp_path):
    """Run a command as a user does who has installed the package `capsprune_toys`."""
    site = tmp_path / "site"
    info = site / "capsprune_toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: capsprune_toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{PLUGINS}]\ntoys = capsprune_toys\n")
    package = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, OUTSIDE, site)))}

    def call(*arguments, plain=False):
        inside = {**os.environ, "PYTHONPATH": str(package)} if plain else environment
        done = subprocess.run(
            [sys.executable, "-m", "capsprune", *map(str, arguments)],
            cwd=tmp_path,
            env=inside,
            capture_output=True,
            encoding="utf-8",
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.mark.slow
def test_one_entry_of_every_table_from_outside_goes_through_the_commands(toys, tmp_path):
    runs = tmp_path / "runs" / "default"

    def ok(*arguments):
        done = toys(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    pruned = ok(
        *("prune", "--model", "toynet", "--data", "stripes", "--criterion", "first"),
        *("--sampler", "middle", "--candidates", 2, "--flops", 0.6, "--round-to", 1),
        *("--bn-batches", 2, "--device", "cpu", "--workers", 2),
    )
    described = json.loads((runs / "pruned" / "architecture.json").read_text())
    assert described["data"]["mean"] == [0.5, 0.5, 0.5]
    assert (pruned["model"], pruned["data"], pruned["criterion"]) == ("toynet", "stripes", "first")
    assert abs(pruned["flops_ratio"] - 0.6) < 0.1
    caps = ok("attach-caps", "--head", "votes", "--epochs", 2, "--device", "cpu")
    assert caps["head_macs"] > 0
    assert ok("evaluate")["accuracy"] == caps["accuracy"]
    assert ok("export", "--onnx")["top1_agreement"] == 1
    assert ok("doctor")["stripes"]["found"] == "in code that registers it"
    weight = ok("weigh", "--unit", 2)
    assert weight["bytes"] > 0
    again = toys("weigh", "--unit", 2)
    assert again.stdout == f"{weight['bytes']}\n" and "weight is done already" in again.stderr
    assert "weight" in ok("runs")["default"]
    explained = " ".join(toys("train", "--help").stdout.split())
    assert "stripes (vertical or horizontal)" in explained

    # Without the package, what it made is still a run, and what it lacks is said.
    bare = toys("runs", "--json", plain=True)
    assert bare.returncode == 0 and "weight" in json.loads(bare.stdout)["default"]
    lost = toys("evaluate", plain=True)
    assert lost.returncode == 2 and "votes" in lost.stderr


def test_a_plug_in_that_cannot_be_imported_is_one_sentence(toys, tmp_path):
    (tmp_path / "site" / "capsprune_toys-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{PLUGINS}]\ntoys = nowhere_at_all\n"
    )
    done = toys("train", "--help")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The plug-in 'toys' (nowhere_at_all) cannot be imported")
