"""Files that were left half-written, or edited, where a command works or looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_runner import SMALL_PRUNE, SMALL_TRAIN, call

from capsprune.pipeline.prunable import UntrainedHead
from capsprune.pipeline.searching import read_measured_flops
from capsprune.run import Run, open_run

DAMAGE = [b"", b"\x80\x02half", b"[1, 2", b"[" * 100_000, b"null", b"{}", b"\xff\xfe", b"[]"]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path


def interrupt(monkeypatch: pytest.MonkeyPatch, *arguments: object, folder: Path) -> None:
    """Run a command up to the moment before its stage counts as done."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "commit", stop)
        assert "goes on from where it stopped" in call(*arguments, folder=folder).err


def test_a_damaged_training_is_told_in_one_sentence_and_starts_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copied / "runs" / "default" / "baseline" / "model.safetensors"
    before = weights.read_bytes()
    again = ("train", *SMALL_TRAIN, "--overwrite")
    interrupt(monkeypatch, *again, folder=copied)
    (copied / "runs" / "default" / ".work" / "baseline" / "training.pt").write_bytes(b"PK half")
    outcome = call(*again, folder=copied)
    assert outcome.code == 0
    (told,) = [line for line in outcome.err.splitlines() if "training.pt" in line]
    assert "is damaged" in told and told.endswith("so the training starts again")
    assert "Traceback" not in outcome.err
    assert weights.read_bytes() == before
    assert not list((copied / "runs" / "default" / ".work").iterdir())


def test_a_search_goes_on_where_its_files_beside_the_study_are_damaged(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("prune", *SMALL_PRUNE, "--overwrite", "--storage", f"sqlite:///{copied}/s.db")
    interrupt(monkeypatch, *again, folder=copied)
    work = copied / "runs" / "default" / ".work" / "pruned"
    (work / "owner.txt").write_bytes(b"\xff\xfe")
    outcome = call(*again, folder=copied)
    assert outcome.code == 0 and "The search goes on after 3 candidates" in outcome.err


@pytest.mark.parametrize("content", [*DAMAGE, b'{"latency": 5, "flops": "x"}', b'{"latency": 5}'])
def test_what_a_latency_allows_is_measured_again_where_its_note_is_damaged(
    tmp_path: Path, content: bytes
) -> None:
    head = UntrainedHead("dynamic", 8)
    (tmp_path / "latency.json").write_text(
        json.dumps({"latency": 5, "head": "dynamic", "d1": 8, "flops": 0.3})
    )
    assert read_measured_flops(tmp_path, 5, head) == 0.3
    (tmp_path / "latency.json").write_bytes(content)
    assert read_measured_flops(tmp_path, 5, head) is None


@pytest.mark.parametrize("content", DAMAGE)
def test_a_stage_starts_afresh_where_its_request_is_damaged(tmp_path: Path, content: bytes) -> None:
    with open_run(tmp_path, "r", create=True) as run:
        work = run.begin("baseline", {"epochs": 2}, None)
        (work / "training.pt").touch()
        (work / "request.json").write_bytes(content)
        assert [one.name for one in run.begin("baseline", {"epochs": 2}, None).iterdir()] == [
            "request.json"
        ]
