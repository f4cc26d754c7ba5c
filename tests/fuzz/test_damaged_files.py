"""Files of a run and recipes, changed at random: one sentence and exit code 2, or it works.

Whatever else happens, a traceback or a computation without end, is a defect.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import typer.main
import yaml
from cli_runner import call
from fake_runs import cell, make_run, make_sweep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capsprune.backbones.registry import backbone, backbone_arguments, build_backbone
from capsprune.checkpoint import Blueprint, DataDescription, describe, save_checkpoint
from capsprune.errors import CapspruneError
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.groups import find_groups
from capsprune.pruning.strategy import kept_channels, read_strategy
from capsprune.sweep import read_sweep_recipe

#: For each kind of file: more than 500 in all.
EXAMPLES = 60
#: Processor seconds that one example may take: most take a tenth of one.
LIMIT = 20

HOSTILE: tuple[Any, ...] = (
    None, True, "", "x", "x" * 5000, "nul\0", "\ud800", "../../x", "2024-13-45", "9" * 5000,
    -1, 0, 1, 2, 50, 0.25, 1.5, -0.0, 1e-300, 1e308, 10**9, 10**30, float("nan"), float("inf"),
    [], {}, [1], {"a": 1}, [None] * 1000, json.loads("[" * 100 + "]" * 100),
)  # fmt: skip

RECIPE = {
    "name": "fuzzed",
    "seed": 1,
    "train": {"model": "mobilenet_v1", "data": "digits", "epochs": 1, "lr": 0.1, "part": 0.5},
    "prune": {"flops": 0.5, "candidates": 3, "bn-batches": 2, "round-to": 8, "d1": 8},
    "attach-caps": {"iterations": 3, "freeze": True, "d2": 16},
    "export": {"opset": 18},
    "profile": {"batch": [1, 32], "repeats": 3},
    "analyse": {"images": 10},
}
SWEEP = {"backbones": ["mobilenet_v1"], "pruned": [0, 50], "seeds": [0, 1],
         "train": {"data": "digits"}, "trunks": {"frozen": {"epochs": 1}}}  # fmt: skip


def pruned_backbone(folder: Path) -> None:
    """Save a small backbone whose data are nowhere."""
    torch.manual_seed(0)
    arguments = backbone_arguments("mobilenet_v1", 32)
    model = build_backbone("mobilenet_v1", 3, **arguments).eval()
    groups = find_groups(model, classifier=backbone("mobilenet_v1").classifier, image_size=32)
    kept = np.array([max(1, group.channels // 8) for group in groups.groups])
    model = prune_channels(model, groups, l1_ranking(model, groups), kept)
    data = DataDescription(
        name="imagefolder:/nowhere",
        class_names=("a", "b", "c"),
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    described = describe(model, Blueprint("mobilenet_v1", arguments, data), parent=None, metrics={})
    save_checkpoint(folder, model, described)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a sweep with made-up figures, a checkpoint, a strategy and recipes."""
    made = tmp_path_factory.mktemp("fuzz")
    make_run(made / "runs", "default", cell())
    make_sweep(made / "runs", seeds=(0,), pruned=(50,))
    pruned_backbone(made / "network")
    recipes = Path(__file__).parents[2] / "recipes"
    shutil.copy(recipes / "strategies" / "resnet50-50.json", made / "strategy.json")
    (made / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (made / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return made


def commands(folder: Path, *lines: str) -> None:
    for line in lines:
        outcome = call(*line.split(), folder=folder)
        assert outcome.code in (0, 2), (line, outcome.err)
        assert "Traceback" not in outcome.err
        if outcome.code == 2:
            last = outcome.err.strip().splitlines()[-1]
            assert last.startswith("Error: ") and len(last) < 2000, (line, outcome.err)


def use_run(folder: Path) -> None:
    commands(folder, "runs", "report")


def use_rows(folder: Path) -> None:
    commands(folder, "report")


def use_sweep(folder: Path) -> None:
    commands(folder, "runs", "report grid --json")


def use_network(folder: Path) -> None:
    commands(folder, "evaluate network --run new", "attach-caps network --run new")


def use_strategy(folder: Path) -> None:
    commands(folder, "inspect --model mobilenet_v1 --image-size 32 --strategy strategy.json")
    try:
        strategy = read_strategy(folder / "strategy.json", "resnet50")
    except CapspruneError:
        return
    fractions = np.array(list(strategy.fractions.values()))
    kept = kept_channels(fractions, np.full(len(fractions), 64), strategy.round_to)
    assert ((kept >= 1) & (kept <= 64)).all()


def use_recipe(folder: Path) -> None:
    # Nothing trains on such a device.
    commands(folder, "run recipe.yaml --device tpu")


def use_sweep_recipe(folder: Path) -> None:
    try:
        read_sweep_recipe(folder / "sweep.yaml")
    except CapspruneError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@dataclass(frozen=True)
class Kind:
    """A file, how its values are parsed and written, and what reads it."""

    path: str
    use: Callable[[Path], None]
    parse: Callable[[str], Any] = json.loads
    write: Callable[[Any], str] = json.dumps


def parse_rows(text: str) -> Any:
    return [json.loads(line) for line in text.splitlines()]


def write_rows(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows]))


def write_yaml(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=False)


KINDS = {
    "run": Kind("runs/default/run.json", use_run),
    "architecture": Kind("network/architecture.json", use_network),
    "strategy": Kind("strategy.json", use_strategy),
    "metrics": Kind("runs/default/caps/metrics.jsonl", use_rows, parse_rows, write_rows),
    "candidates": Kind("runs/default/pruned/candidates.jsonl", use_rows, parse_rows, write_rows),
    "sweep": Kind("runs/grid/sweep.json", use_sweep),
    "sweep profile": Kind("runs/grid/profile.json", use_sweep),
    "recipe": Kind("recipe.yaml", use_recipe, yaml.safe_load, write_yaml),
    "sweep recipe": Kind("sweep.yaml", use_sweep_recipe, yaml.safe_load, write_yaml),
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every dictionary or list in a value, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                todo.append(one[key])
    return found


@st.composite
def changed(draw: st.DrawFn, kind: Kind, whole: bytes) -> bytes:
    """A file's content with a few values, or bytes, changed."""
    if draw(st.integers(0, 3)):
        value = copy.deepcopy(kind.parse(whole.decode()))
        for _ in range(draw(st.integers(1, 2))):
            if not (of := places(value)):
                break
            holder, key = of[draw(st.integers(0, len(of) - 1))]
            change = draw(st.sampled_from(["replace"] * 4 + ["delete", "double", "swap"]))
            if change == "replace":
                holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
            elif change == "delete":
                del holder[key]
            elif change == "double" and isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            elif change == "double":
                holder[f"{key}2"] = copy.deepcopy(holder[key])
            else:
                other, there = of[draw(st.integers(0, len(of) - 1))]
                holder[key] = copy.deepcopy(other[there])
        return kind.write(value).encode(errors="surrogatepass")
    content = bytearray(whole)
    at = draw(st.integers(0, len(content) - 1))
    length = draw(st.integers(1, 30))
    change = draw(st.sampled_from(["flip", "cut", "delete", "double", "insert"]))
    if change == "flip":
        content[at] ^= 1 << draw(st.integers(0, 7))
    elif change == "cut":
        del content[at:]
    elif change == "delete":
        del content[at : at + length]
    elif change == "double":
        content[at:at] = content[at : at + length]
    else:
        content[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


PANELS = ("curves", "points", "bars")


def check_records(records: list[dict[str, Any]], *_: object, **__: object) -> str:
    """Check what a panel would draw, in place of drawing it."""
    assert records
    json.dumps(records, allow_nan=False)
    return "panel"


def fuzz(folder: Path, kind: Kind, examples: int = EXAMPLES) -> None:
    path = folder / kind.path
    whole = path.read_bytes()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(kind, whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        start = time.process_time()
        kind.use(folder)
        assert time.process_time() - start < LIMIT

    try:
        # What takes most of the time reads none of the files.
        with ExitStack() as stack:
            stack.enter_context(patch("capsprune.report.write.draw_figures", lambda *_: []))
            stack.enter_context(patch("capsprune.report.page.library", lambda: ""))
            stack.enter_context(patch("capsprune.report.charts.Figure.spec", {}))
            for panel in PANELS:
                stack.enter_context(patch(f"capsprune.report.charts.{panel}", check_records))
            stack.enter_context(patch("os.fsync", lambda descriptor: None))
            cached = functools.cache(typer.main.get_command)
            stack.enter_context(patch("typer.main.get_command", cached))
            check()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_however_a_file_is_damaged_it_is_one_sentence(folder: Path, kind: Kind) -> None:
    fuzz(folder, kind)
