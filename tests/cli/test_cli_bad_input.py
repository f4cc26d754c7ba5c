"""Bad input: exit code 2, one sentence with cause and remedy, nothing written or lost."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import SMALL_PRUNE, SMALL_TRAIN, Outcome, call
from PIL import Image

Cli = Callable[..., Outcome]
STRATEGIES = Path(__file__).parents[2] / "recipes" / "strategies"
PYTHON = (sys.executable, "-m", "capsprune")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path


def refused(outcome: Outcome, *words: str) -> None:
    """Check that something was refused in one sentence that has these words, without traceback."""
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (shade, 100, 200)).save(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--model", "resnet5"), ("resnet50",)),
        (("prune", "--model", "mobilenetv1"), ("mobilenet_v1",)),
        (("inspect", "--model", "vit_b_16"), ("vit_b_16 cannot be used", "transformer")),
        (("train", "--model", "googlenet"), ("googlenet cannot be used", "auxiliary classifiers")),
        (("train", "--model", "resnet18", "--data", "cifar"), ("cifar10",)),
        (("train", "--model", "resnet18", "--data", "imagefolder:"), ("imagefolder:PATH",)),
        (("prune", "--model", "resnet18", "--flops", 0), ("--flops", "greater than 0")),
        (("prune", "--model", "resnet18", "--flops", 1.5), ("--flops", "less than or equal to 1")),
        (
            ("prune", "--model", "resnet18", "--flops", 1, "--params", 0.5),
            ("--flops 1 removes nothing", "--params"),
        ),
        (("train", "--model", "resnet18", "--part", 0), ("--part", "greater than 0")),
        (("attach-linear",), ("no run 'default'",)),
        (("analyse",), ("no run 'default'",)),
        (("report",), ("no run 'default'",)),
        (("prune", "--model", "resnet18", "--flops", -0.5), ("--flops",)),
        (("prune", "--model", "resnet18", "--flops", "nan"), ("--flops",)),
        (("prune", "--model", "resnet18", "--params", 1.5), ("--params", "less than 1")),
        (("prune", "--model", "resnet18", "--primary-caps", 0), ("--primary-caps",)),
        (("prune", "--model", "resnet18", "--latency", 0), ("--latency", "greater than 0")),
        (("prune", "--model", "resnet18", "--workers", 0), ("--workers",)),
        (("prune", "--model", "resnet18", "--reduction-factor", 0), ("--reduction-factor",)),
        (
            ("prune", "--model", "resnet18", "--latency", 5, "--workers", 2),
            ("--latency", "--workers 1"),
        ),
        (
            ("prune", *("--model", "resnet18", "--sampler", "eagleeye", "--primary-caps", 9)),
            ("--sampler random",),
        ),
        (
            ("prune", "--model", "resnet18", "--strategy", "s.json", "--flops", 0.5),
            ("--strategy has its size already", "--flops"),
        ),
        (("prune",), ("no baseline", "--model")),
        (("attach-caps",), ("no run 'default'",)),
        (("export", "--onnx"), ("no run 'default'",)),
        (("profile",), ("no run 'default'",)),
        (("evaluate",), ("no run 'default'",)),
        (("inspect",), ("no run 'default'",)),
        (("train", "--model", "resnet18", "--image-size", 16), ("too small", "--image-size 32")),
        (("train", "--model", "vgg16_bn", "--image-size", 31), ("too small", "--image-size 32")),
        (("inspect", "--model", "mobilenet_v1", "--image-size", 8), ("too small",)),
        (("train", "--model", "resnet18", "--weights", "no.pth"), ("no.pth", "check the path")),
        (("train", "--model", "resnet18", "--epochs", -1), ("--epochs",)),
        (("train", "--model", "resnet18", "--batch-size", 1), ("--batch-size",)),
        (("train", "--model", "resnet18", "--lr", 0), ("--lr",)),
        (("train", "--model", "resnet18", "--device", "tpu"), ("tpu", "--device")),
        (("train", "--model", "resnet18", "--run", "../up"), ("no name for a run",)),
        (("profile", "--batch", "1,many"), ("--batch",)),
        (("profile", "--batch", "0"), ("--batch",)),
        (("profile", "--batch", ""), ("--batch",)),
        (("export", "nowhere", "--onnx"), ("nowhere", "check the path")),
        (("export", "--opset", 9), ("--opset",)),
        (("run", "nothing.yaml"), ("nothing.yaml", "check the path")),
        (
            ("inspect", "--model", "resnet18", "--strategy", "no.json"),
            ("no.json", "check the path"),
        ),
        (("inspect", "--strategy", "no.json"), ("no.json", "check the path")),
        (("inspect", "--model", "resnet18", "--d1", 600), ("512 channels", "--d1")),
        (("attach-caps", "--primary", "dens"), ("did you mean dense",)),
        (("inspect", "--model", "resnet18", "--primary", "dens"), ("did you mean dense",)),
        (
            ("inspect", "--model", "resnet18", "--primary", "spatial"),
            ("7 x 7, too small", "--image-size"),
        ),
        (("inspect", "--model", "resnet18", "--types", 4), ("has no --types",)),
        (("inspect", "--model", "resnet18", "--types", 0), ("--types", "greater than")),
        (
            ("inspect", "--model", "resnet18", "--primary", "depthwise", "--primary-rank", 4),
            ("has no --primary-rank",),
        ),
    ],
)
def test_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(cli(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(finished: Path, cli: Cli) -> None:
    refused(cli("train", "--model", "resnet18", "--device", "cuda"), "--device cpu")
    outcome = call("profile", "--provider", "cuda", "--overwrite", folder=finished)
    refused(outcome, "NVIDIA GPU", "--provider cpu")


def test_unknown_option_and_command(cli: Cli) -> None:
    for arguments in (("prune", "--flopz", 0.5), ("prun",)):
        outcome = cli(*arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err


def test_target_that_no_strategy_meets(copied: Path) -> None:
    outcome = call(*("prune", "--flops", 0.2, "--max-rate", 0.1, "--overwrite"), folder=copied)
    refused(outcome, "the least is", "--max-rate")
    assert (copied / "runs" / "default" / "pruned" / "model.safetensors").is_file()
    assert call("runs", folder=copied).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--primary-caps", 129), ("128 primary capsules", "--primary-caps")),
        (("--primary-caps", 1), ("the least is", "--max-rate")),
        (("--primary-caps", 3, "--d1", 2000), ("1024 channels", "--d1")),
        (("--primary-caps", 100, "--flops", 0.2, "--max-rate", 0.3), ("the least is", "--flops")),
        (("--primary-caps", 10, "--flops", 0.99), ("With 10 primary capsules", "--primary-caps")),
        (("--params", 0.05, "--max-rate", 0.3), ("of the parameters", "--params")),
        (("--latency", 0.0001), ("longer than 0.0001", "--latency")),
    ],
)
def test_sizes_that_no_strategy_meets(
    copied: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(call("prune", *arguments, "--overwrite", folder=copied), *words)
    assert (copied / "runs" / "default" / "pruned" / "model.safetensors").is_file()
    assert not (copied / "runs" / "default" / ".work" / "pruned").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file.db", ("--storage", "sqlite:///search.db")),
        ("postgresql+none://me:secret@host/name", ("postgresql+none://me:***@host/name",)),
        ("mysql+mysqldb://me:secret@host/name", ("driver", "pip install")),
    ],
)
def test_storage_that_cannot_be_used(copied: Path, url: str, words: tuple[str, ...]) -> None:
    outcome = call("prune", *SMALL_PRUNE, "--overwrite", "--storage", url, folder=copied)
    refused(outcome, *words)
    assert "secret" not in outcome.err
    assert not any(b"secret" in path.read_bytes() for path in copied.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strategy", "no.json"), ("no.json", "check the path")),
        (("--strategy", STRATEGIES / "resnet50-50.json"), ("resnet50, not for mobilenet_v1",)),
        (("--flops", 0.0001), ("the least is",)),
        (("--primary-caps", 129), ("128 primary capsules",)),
        (("--latency", 0.0001), ("longer than 0.0001",)),
        (("--storage", "file.db"), ("--storage",)),
    ],
)
def test_refused_before_the_baseline_is_trained(
    cli: Cli, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(cli("prune", "--model", "mobilenet_v1", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_trunk_narrower_than_a_capsule(copied: Path) -> None:
    refused(call("attach-caps", "--d1", 2000, "--overwrite", folder=copied), "2000", "--d1")
    assert (copied / "runs" / "default" / "caps" / "model.safetensors").is_file()


def test_baseline_of_another_kind(copied: Path) -> None:
    refused(
        call("prune", "--model", "resnet18", "--overwrite", folder=copied), "mobilenet_v1", "--run"
    )
    refused(call("prune", "--data", "cifar10", "--overwrite", folder=copied), "digits", "--run")
    refused(call("prune", "--seed", 7, "--overwrite", folder=copied), "seed", "--run")


def test_stage_before_its_predecessor(copied: Path) -> None:
    record_path = copied / "runs" / "default" / "run.json"
    record = json.loads(record_path.read_text())
    for stage, command, needed in (
        ("onnx", ("profile",), "export --onnx"),
        ("caps", ("export", "--onnx"), "attach-caps"),
        ("pruned", ("attach-caps",), "prune"),
    ):
        del record["stages"][stage]
        record_path.write_text(json.dumps(record))
        refused(call(*command, folder=copied), f"'capsprune {needed}'")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "other shapes"])
def test_damaged_checkpoint(copied: Path, damage: str) -> None:
    caps = copied / "runs" / "default" / "caps"
    weights = caps / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "foreign":
        (caps / "architecture.json").write_text('{"class": "ResNet"}')
    else:
        shutil.copy(copied / "runs" / "default" / "pruned" / "model.safetensors", weights)
    refused(call("export", "--onnx", "--overwrite", folder=copied), "make the checkpoint anew")
    assert (copied / "runs" / "default" / "onnx" / "model.onnx").is_file()


def test_damaged_run_file(copied: Path) -> None:
    (copied / "runs" / "default" / "run.json").write_text("{")
    refused(call("attach-caps", folder=copied), "run.json", "damaged")


class _Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("plain", [True, False])
def test_pickled_object_is_refused_and_not_executed(cli: Cli, tmp_path: Path, plain: bool) -> None:
    marker = tmp_path / "executed"
    file = tmp_path / "evil.pth"
    if plain:
        file.write_bytes(pickle.dumps(_Marker(str(marker))))
    else:
        torch.save({"state_dict": _Marker(str(marker))}, file)
    refused(cli("train", "--model", "resnet18", "--weights", file), "evil.pth")
    assert not marker.exists()
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_model(cli: Cli, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    refused(cli("train", "--model", "resnet18", "--weights", tmp_path / "other.pth"), "resnet18")
    assert not (tmp_path / "runs").exists()


def test_data_folders_that_cannot_be_used(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    train = ("train", "--model", "resnet18", "--weights", "none", "--image-size", 32)

    def outcome() -> Outcome:
        return cli(*train, "--data", f"imagefolder:{data}")

    refused(outcome(), str(data))
    data.mkdir()
    refused(outcome(), str(data))
    for index in range(10):
        picture(data / "cat" / f"{index}.png", index)
    refused(outcome(), "class")
    for index in range(10):
        picture(data / "dog" / f"{index}.png", index)
    (data / "dog" / "clip.mp4").write_text("no image")
    refused(outcome(), "clip.mp4")
    (data / "dog" / "clip.mp4").unlink()
    whole = (data / "dog" / "3.png").read_bytes()
    (data / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    refused(outcome(), "3.png")
    assert not (tmp_path / "runs").exists()


def test_recipe_fields(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for text, words in (
        ("train: {model: resnet18, epoch: 3}", ("epoch", "did you mean epochs")),
        ("trian: {model: resnet18}", ("trian", "train")),
        ("train: {}", ("train.model", "missing")),
        ("train: {model: resnet18}\nprune: {flops: 2}", ("prune.flops", "less than or equal to 1")),
        ("train: {model: resnet19}", ("resnet18",)),
        ("- 1", ("recipe",)),
        ("train: [", ("YAML",)),
    ):
        recipe.write_text(text)
        refused(cli("run", recipe), *words)
        assert not (tmp_path / "runs").exists()


def test_output_that_exists_or_has_no_folder(finished: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.onnx"
    there.write_text("precious")
    for target, words in (
        (there, ("--overwrite",)),
        (tmp_path / "no" / "x.onnx", ("folder",)),
        (tmp_path, ("folder",)),
    ):
        refused(call("export", "--onnx", "--output", target, folder=finished), *words)
    assert there.read_text() == "precious"


def start(
    folder: Path, *arguments: object, prepare: Callable[[], None] = lambda: None
) -> subprocess.Popen[str]:
    """Run the command line in a process of its own, which calls `prepare` first."""

    def prepared() -> None:
        # Where the tests run in the background, they and what they start would ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prepare()

    return subprocess.Popen(
        [*PYTHON, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepared,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(3600):  # for minutes: other work may share the cores
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_interrupt_and_second_process(tmp_path: Path) -> None:
    """Ctrl-C while training: the run goes on. Meanwhile nobody else may work in it."""
    train = ("train", "--model", "mobilenet_v1", "--epochs", 3)
    process = start(tmp_path, *train)
    state = tmp_path / "runs" / "default" / ".work" / "baseline" / "training.pt"
    try:
        wait_for(state, process)
        refused(call("prune", folder=tmp_path), "Another process", "--run")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    saved = len(torch.load(state, weights_only=True)["epochs"])
    assert 1 <= saved < 3
    again = call(*train, "--json", "-v", folder=tmp_path)
    assert again.code == 0, again.err
    assert json.loads(again.out)["epochs"] == 3
    assert "Training, epoch 1:" not in again.err


def test_kill_while_searching(copied: Path) -> None:
    """SIGKILL in the search: no finished candidate is lost or tried again."""
    prune = (*SMALL_PRUNE[:2], "--candidates", 6, "--bn-batches", 10, "--epochs", 0)
    process = start(copied, "prune", *prune, "--overwrite")
    database = copied / "runs" / "default" / ".work" / "pruned" / "study.db"
    try:
        deadline = time.monotonic() + 120
        while not (before := scored(database)) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    before = scored(database)
    assert before
    assert (copied / "runs" / "default" / "pruned" / "model.safetensors").is_file()
    again = call("prune", *prune, "--overwrite", folder=copied)
    assert again.code == 0, again.err
    assert "goes on after" in again.err
    after = (copied / "runs" / "default" / "pruned" / "candidates.jsonl").read_text().splitlines()
    assert len(after) == 6
    assert [json.loads(line) for line in after[: len(before)]] == before


def scored(database: Path) -> list[dict[str, Any]]:
    """Read the candidates that a search has stored by now."""
    if not database.is_file():
        return []
    with contextlib.suppress(sqlite3.OperationalError):  # the tables are not there yet
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT value_json FROM trial_user_attributes WHERE key = 'result' "
                "ORDER BY trial_id"
            ).fetchall()
        finally:
            connection.close()
        return [json.loads(text) for (text,) in rows]
    return []


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    process = start(tmp_path, "train", *SMALL_TRAIN[:2], "--epochs", 2, prepare=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "no space left" in err.splitlines()[-1]
    assert "Traceback" not in err
    run = tmp_path / "runs" / "default"
    assert not (run / "baseline").exists()
    assert not list(run.rglob("*.partial*")), list(run.rglob("*"))


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PYTHON, "train", "--model", "nothing", "--debug"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
