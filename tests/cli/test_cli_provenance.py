"""Images that trained a checkpoint never test it, and a run says what was really done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Outcome, call
from safetensors.torch import load_file, save

from capsprune.checkpoint import read_architecture
from capsprune.data.splits import Split
from capsprune.errors import DataError
from capsprune.pipeline import session

Cli = Callable[..., Outcome]
#: An untrained baseline on a tenth of the training images: a second.
TINY = ("train", "--model", "mobilenet_v1", "--weights", "none", "--epochs", 0, "--part", 0.1)


def done(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert all(word in last for word in words), last


def split_of(folder: Path, run: str) -> Split:
    return Split.from_json((folder / "runs" / run / "split.json").read_text())


def record_of(folder: Path, run: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "runs" / run / "run.json").read_text())
    return record


def change_record(folder: Path, run: str, change: Callable[[dict[str, Any]], object]) -> None:
    record = record_of(folder, run)
    change(record["stages"])
    (folder / "runs" / run / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with an untrained baseline of seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("trained")
    for run, seed in (("a", 1), ("other", 2)):
        outcome = call(*TINY, "--run", run, "--seed", seed, folder=folder)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, to change."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path


def test_the_test_images_do_not_hang_on_the_seed(copied: Path) -> None:
    one, other = split_of(copied, "a"), split_of(copied, "other")
    assert one.test == other.test and one.validation != other.validation
    done(call(*TINY, "--run", "asked", "--split-seed", 1, "--json", folder=copied))
    assert split_of(copied, "asked").test != one.test
    assert record_of(copied, "asked")["stages"]["baseline"]["options"]["split_seed"] == 1


@pytest.mark.parametrize("images", ["test", "validation", "train"])
@pytest.mark.parametrize("run", ["new", "other"])
def test_a_checkpoint_is_scored_on_its_own_split(copied: Path, images: str, run: str) -> None:
    ask = ("evaluate", "runs/a/baseline", "--split", images, "--json")
    own = done(call(*ask, "--run", "a", folder=copied))
    elsewhere = call(*ask, "--run", run, folder=copied)
    assert done(elsewhere) == own
    assert own["images"] == split_of(copied, "a").counts[images]
    assert ("its own is used" in elsewhere.err) == (run == "other")


@pytest.mark.parametrize("carried", ["by the checkpoint", "by its run"])
def test_a_run_that_takes_a_checkpoint_takes_its_split(copied: Path, carried: str) -> None:
    baseline = copied / "runs" / "a" / "baseline"
    if carried == "by its run":  # as older versions left it
        architecture = json.loads((baseline / "architecture.json").read_text())
        del architecture["split"]
        (baseline / "architecture.json").write_text(json.dumps(architecture))
        (baseline / "split.json").unlink()
    command = ("attach-linear", "runs/a/baseline", "--epochs", 1, "--freeze", "--json")
    done(call(*command, "--run", "b", "--seed", 5, folder=copied))
    split = split_of(copied, "a")
    assert split_of(copied, "b") == split
    assert read_architecture(copied / "runs" / "b" / "linear").split == split.digest
    # What the run trains next is split in the same way, and that is what its record says.
    done(call(*TINY[:-2], "--run", "b", "--json", folder=copied))
    assert record_of(copied, "b")["stages"]["baseline"]["options"]["part"] == 0.1
    assert split_of(copied, "b") == split
    refused(
        call(*TINY[:-1], 0.5, "--run", "b", "--overwrite", folder=copied),
        *("linear of run 'b'", "--part 0.1, not 0.5", "another --run"),
    )


@pytest.mark.parametrize(
    "command",
    [
        ("attach-caps", "runs/a/baseline"),
        ("attach-linear", "runs/a/baseline"),
        ("import-checkpoint", "runs/a/baseline/model.safetensors", "--model", "mobilenet_v1"),
    ],
)
def test_a_run_refuses_a_checkpoint_of_another_split(
    copied: Path, command: tuple[object, ...]
) -> None:
    before = (copied / "runs" / "other" / "run.json").read_bytes()
    refused(
        call(*command, "--run", "other", folder=copied),
        *("another split of its images than run 'other'", "another --run"),
    )
    assert (copied / "runs" / "other" / "run.json").read_bytes() == before


def test_weights_of_a_checkpoint_bring_its_split(copied: Path) -> None:
    weights = "runs/a/baseline/model.safetensors"
    command = ("train", "--model", "mobilenet_v1", "--epochs", 0, "--weights", weights)
    done(call(*command, "--run", "new", "--json", folder=copied))
    assert split_of(copied, "new") == split_of(copied, "a")
    assert record_of(copied, "new")["stages"]["baseline"]["options"]["part"] == 0.1


def test_a_checkpoint_of_unknown_images_is_told(copied: Path) -> None:
    loose = copied / "loose"
    shutil.copytree(copied / "runs" / "a" / "baseline", loose)
    architecture = json.loads((loose / "architecture.json").read_text())
    (loose / "architecture.json").write_text(json.dumps({**architecture, "split": None}))
    outcome = call("evaluate", "loose", "--json", folder=copied)
    assert done(outcome)["images"] == 359
    assert "does not say which images trained it" in outcome.err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), ("has no split.json", "put it back")),
        (lambda path: path.write_text("{"), ("split.json is damaged", "restore it")),
        (
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "test": []})),
            ("split.json is damaged", "another split"),
        ),
    ],
)
def test_a_damaged_split_of_a_checkpoint(
    copied: Path, damage: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    damage(copied / "runs" / "a" / "baseline" / "split.json")
    refused(call("evaluate", "runs/a/baseline", "--run", "new", folder=copied), *words)


def test_the_part_that_is_recorded_is_the_part_that_is_used(copied: Path) -> None:
    test = split_of(copied, "a").test
    for part in (0.3, 1, 0.05):
        done(call(*TINY[:-1], part, "--run", "a", "--overwrite", "--json", folder=copied))
        split = split_of(copied, "a")
        used = split.counts["train"] + split.counts["validation"]
        assert abs(used - part * (split.size - split.counts["test"])) <= 1
        assert split.test == test
        recorded = record_of(copied, "a")["stages"]["baseline"]["options"]["part"]
        assert recorded == (None if part == 1 else part)
        assert read_architecture(copied / "runs" / "a" / "baseline").split == split.digest


def test_the_old_split_stays_until_the_new_stage_is_finished(copied: Path) -> None:
    before = split_of(copied, "a")
    command = (*TINY[:-1], 0.3, "--run", "a", "--overwrite", "--device", "cuda:99")
    assert call(*command, folder=copied).code == 2
    assert split_of(copied, "a") == before
    assert call("evaluate", "--run", "a", folder=copied).code == 0


def test_precision_is_compared_and_the_device_is_noted(copied: Path) -> None:
    again = (*TINY, "--run", "a")
    refused(
        call(*again, "--precision", "bf16-mixed", folder=copied),
        *("precision 32-true instead of bf16-mixed", "--overwrite"),
    )
    record = record_of(copied, "a")["stages"]["baseline"]
    assert record["summary"]["device"] in ("cpu", "cuda")
    assert record["options"]["precision"] == "32-true"


def test_precision_acts_where_it_is_offered(copied: Path) -> None:
    ask = ("evaluate", "--run", "a", "--device", "cpu", "--json")
    exact = done(call(*ask, folder=copied))
    rough = done(call(*ask, "--precision", "bf16-mixed", folder=copied))
    assert rough["loss"] != exact["loss"] and abs(rough["loss"] - exact["loss"]) < 0.1
    assert (exact["precision"], rough["precision"]) == ("32-true", "bf16-mixed")
    for command in ("export", "profile", "import-checkpoint"):
        outcome = call(command, "--precision", "bf16-mixed", folder=copied)
        assert outcome.code == 2 and "No such option" in outcome.err
    for command in ("run", "sweep", "prune", "attach-caps", "attach-linear", "analyse"):
        assert "--precision" in call(command, "--help", folder=copied).out


def test_options_that_came_later_leave_older_stages_as_they_are(copied: Path) -> None:
    def as_older_versions_wrote(stages: dict[str, Any]) -> None:
        options = stages["baseline"]["options"]
        for name in ("precision", "split_seed", "lr", "batch_size", "weights"):
            del options[name]
        options["data_root"] = "/data"

    change_record(copied, "a", as_older_versions_wrote)
    outcome = call(*TINY, "--run", "a", folder=copied)  # whose --weights are not the default
    refused(outcome, "weights auto instead of none;")
    change_record(copied, "a", lambda stages: stages["baseline"]["options"].update(weights="none"))
    assert "done already" in call(*TINY, "--run", "a", folder=copied).err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_the_future": 1}, ("does not know (from_the_future)", "--overwrite")),
        ({"epochs": "many"}, ("cannot be used", "epochs", "--overwrite")),
        ({"model": "no_such_net"}, ("cannot be used", "no_such_net", "--overwrite")),
        ({"sha256": "0" * 64}, ("does not know (sha256)", "--overwrite")),
    ],
)
def test_stored_options_that_cannot_be_read(
    copied: Path, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    change_record(copied, "a", lambda stages: stages["baseline"]["options"].update(options))
    refused(call(*TINY, "--run", "a", folder=copied), *words)


def test_another_file_of_the_same_name_is_another_request(copied: Path) -> None:
    weights, strategy = copied / "weights.safetensors", copied / "strategy.json"
    weights.write_bytes((copied / "runs/a/baseline/model.safetensors").read_bytes())
    train = (*(weights if part == "none" else part for part in TINY), "--run", "w")
    prune = ("prune", "--run", "w", "--strategy", strategy, "--bn-batches", 1, "--epochs", 0)
    assert call(*train, folder=copied).code == 0
    assert call("prune", "--run", "w", "--flops", 1, *prune[-4:], folder=copied).code == 0
    shutil.copy(copied / "runs" / "w" / "pruned" / "strategy.json", strategy)
    assert call(*prune, "--overwrite", folder=copied).code == 0

    assert "done already" in call(*train, folder=copied).err
    assert "done already" in call(*prune, folder=copied).err
    state = load_file(weights)
    weights.write_bytes(save({**state, "linear.bias": state["linear.bias"] + 1}))
    strategy.write_text(strategy.read_text(encoding="utf-8") + " ", encoding="utf-8")
    refused(call(*train, folder=copied), "weights-sha256", "--overwrite")
    refused(call(*prune, folder=copied), "strategy-sha256", "--overwrite")
    weights.unlink()
    assert "done already" in call(*train, folder=copied).err


def test_capsules_have_the_size_that_prune_counted_with(copied: Path) -> None:
    a = ("--run", "a")
    prune = ("prune", "--flops", 1, "--d1", 4, "--bn-batches", 1, "--epochs", 0)
    assert call(*prune, *a, folder=copied).code == 0
    attach = ("attach-caps", "--freeze", "--epochs", 1)
    outcome = call(*attach, *a, "--json", folder=copied)
    assert done(outcome)["primary_capsules"] == 1024 // 4
    assert "4 values, as --d1 of prune said" in outcome.err
    assert record_of(copied, "a")["stages"]["caps"]["options"]["d1"] == 4
    assert "done already" in call(*attach, *a, folder=copied).err
    refused(call(*attach, "--d1", 8, *a, folder=copied), "d1 4 instead of 8")


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which there is no data set."""

    def load_data(name: str, **_: object) -> None:
        raise DataError(f"There is no data set {name} here: put it there.")

    monkeypatch.setattr(session, "load_data", load_data)


@pytest.mark.usefixtures("without_data")
def test_a_checkpoint_is_exported_without_its_data(copied: Path) -> None:
    command = ("export", "runs/a/baseline", "--run", "new", "--output", "a.onnx", "--json")
    report = done(call(*command, folder=copied))
    assert report["verified_on"] == "test images that the checkpoint carries"
    carried = copied / "runs" / "a" / "baseline" / "verification.safetensors"
    assert load_file(carried)["images"].shape == (32, 1, 8, 8)
    # One of before they carried any.
    carried.unlink()
    outcome = call(*command, "--overwrite", folder=copied)
    assert done(outcome)["verified_on"] == "noise"
    assert "verified on noise" in outcome.err and "no data set digits" in outcome.err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tensors",
        save({"images": torch.zeros(2, 3, 4, 4)}),
        save({"images": torch.zeros(2, 5, 4, 4, dtype=torch.uint8)}),
        save({"images": torch.zeros(33, 1, 4, 4, dtype=torch.uint8)}),
        save({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}),
        save({"others": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}),
    ],
)
def test_damaged_images_of_a_checkpoint(copied: Path, content: bytes) -> None:
    baseline = copied / "runs" / "a" / "baseline"
    (baseline / "verification.safetensors").write_bytes(content)
    outcome = call("export", "runs/a/baseline", "--run", "new", folder=copied)
    refused(outcome, "verification.safetensors is damaged", "restore it")
    assert not (copied / "runs" / "a" / "baseline.onnx").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_data")
def test_a_finished_run_is_profiled_without_its_data(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    export = ("export", "--onnx", "--overwrite", "--json")
    assert "carries" in done(call(*export, folder=tmp_path))["verified_on"]
    profile = ("profile", "--batch", 1, "--repeats", 5, "--overwrite", "--json")
    assert len(done(call(*profile, folder=tmp_path))["variants"]) == 3


@pytest.mark.slow
def test_an_analysis_in_half_precision_is_another(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    ask = ("analyse", "--images", 50, "--device", "cpu", "--json")
    exact = done(call(*ask, folder=tmp_path))
    rough = (*ask, "--precision", "bf16-mixed")
    refused(call(*rough, folder=tmp_path), "precision 32-true instead of bf16-mixed")
    found = done(call(*rough, "--overwrite", folder=tmp_path))
    assert found["coupling_entropy"] != exact["coupling_entropy"]
    assert abs(found["bottleneck_entropy"] - exact["bottleneck_entropy"]) < 0.05
