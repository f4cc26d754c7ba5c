"""The reader and writer of run.json, and what was made from what."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from capsprune.lineage import Stale, changed_options, find_stale, kept_beside, line_of
from capsprune.records import StageRecord, read_record, write_record
from capsprune.run import open_run
from capsprune.stages import STAGES
from capsprune.summaries import (
    AnalysisSummary,
    ExportSummary,
    HeadSummary,
    NetworkSummary,
    ProfileSummary,
    StageSummary,
)

#: As version 0.1.0 wrote it, with all of its stages.
OLD = Path(__file__).parent / "files" / "run_0.1.0.json"


def test_a_run_of_version_0_1_0_is_read_and_written_unchanged(tmp_path: Path) -> None:
    record = read_record(OLD)
    assert set(record.stages) == set(STAGES) - {"slim"}  # which came later
    write_record(tmp_path / "run.json", record)
    before, after = json.loads(OLD.read_text()), json.loads((tmp_path / "run.json").read_text())
    assert after == before
    # An integer stays one, and what was absent stays absent.
    assert str(after["stages"]["analysis"]["summary"]["robustness"][0]["amount"]) == "0"
    assert "majority_rate" not in after["stages"]["linear"]["summary"]


def test_a_stage_done_beside_older_ones_leaves_them_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_bytes(OLD.read_bytes())
    network = {"model": "tiny", "data": "digits", "forward_macs": 1, "parameters": 1}
    with open_run(tmp_path, "r") as run:
        result = run.begin("baseline", {}, None) / "result"
        result.mkdir()
        run.commit(
            "baseline", result, id="b", options={}, parent=None, seconds=1.0, summary=network
        )
    before = json.loads(OLD.read_text())["stages"]
    after = json.loads((tmp_path / "r" / "run.json").read_text())["stages"]
    assert after["baseline"]["summary"] == network
    assert {s: r for s, r in after.items() if s != "baseline"} == {
        s: r for s, r in before.items() if s != "baseline"
    }


def test_the_summaries_of_an_old_run_have_attributes() -> None:
    stages = read_record(OLD).stages
    caps = stages["caps"].summary_as(HeadSummary)
    assert (caps.model, caps.is_frozen, caps.accuracy) == ("mobilenet_v1", False, 0.9889)
    assert caps.headline == "98.89%"
    assert stages["pruned"].summary_as(NetworkSummary).candidates == 30
    assert stages["onnx"].summary_as(ExportSummary).headline == "done"
    profile = stages["profile"].summary_as(ProfileSummary)
    assert {row.variant for row in profile.measurements} == set(profile.variants)
    assert stages["analysis"].summary_as(AnalysisSummary).robustness[0].distortion == "none"


def test_a_summary_is_made_as_it_will_be_read() -> None:
    made = NetworkSummary.of(
        {
            **{"model": "m", "data": "d", "forward_macs": 1, "parameters": 2},
            **{"loss": math.nan, "rungs": (3, 1), "later": {"a": [None]}},
        }
    )
    assert made.loss is None and made.accuracy is None
    assert made.to_dict() == {
        **{"model": "m", "data": "d", "forward_macs": 1, "parameters": 2},
        **{"loss": None, "rungs": [3, 1], "later": {"a": [None]}},
    }
    assert NetworkSummary.of(made) == made
    with pytest.raises(ValidationError, match="frozen"):
        made.loss = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="left out where there is none"):
        NetworkSummary.of({**made.to_dict(), "accuracy": None})


def record(id: str, parent: str | None = None, **options: object) -> StageRecord:
    return StageRecord(
        options=dict(options),
        parent=parent,
        id=id,
        finished="2026-01-01",
        seconds=1.0,
        summary=StageSummary(),
    )


RECORDS = {
    "baseline": record("b"),
    "pruned": record("p", "b"),
    "caps": record("c", "p"),
    "linear": record("l", "other", checkpoint="elsewhere"),
    "unknown": record("u", "c"),
    "onnx": record("o", "c"),
}


def test_each_stage_comes_from_a_line() -> None:
    assert line_of("onnx", RECORDS) == ["baseline", "pruned", "caps", "onnx"]
    assert line_of("unknown", RECORDS) == ["baseline", "pruned", "caps", "unknown"]
    assert line_of("baseline", {}) == ["baseline"]


@pytest.mark.parametrize("stage", list(RECORDS))
def test_nothing_is_stale_where_all_are_of_each_other(stage: str) -> None:
    assert find_stale(stage, RECORDS) is None


def test_what_was_made_from_an_older_one_is_stale_with_what_follows() -> None:
    anew = {**RECORDS, "pruned": record("p2", "b")}
    assert (
        find_stale("caps", anew)
        == find_stale("onnx", anew)
        == Stale("caps", "pruned", made_from=None)
    )
    assert find_stale("pruned", anew) is None
    assert find_stale("linear", anew) is None  # of a checkpoint that was named


def test_what_was_made_before_a_stage_that_it_would_follow_now_is_stale() -> None:
    slim = {**RECORDS, "slim": record("s", "c")}
    stale = find_stale("onnx", slim)
    assert stale == Stale("onnx", "slim", made_from="caps")
    assert stale.words == "caps, before there was slim"
    anew = {**slim, "onnx": record("o2", "s")}
    assert line_of("onnx", anew) == ["baseline", "pruned", "caps", "slim", "onnx"]
    assert find_stale("onnx", anew) is None
    assert find_stale("onnx", {**anew, "caps": record("c2", "p")}) == Stale("slim", "caps", None)
    assert kept_beside("slim", anew) == ["baseline", "pruned", "caps", "linear", "unknown"]


def test_what_does_not_come_from_a_stage_is_kept_beside_it() -> None:
    assert kept_beside("pruned", RECORDS) == ["baseline", "linear"]
    assert kept_beside("caps", RECORDS) == ["baseline", "pruned", "linear"]
    assert kept_beside("baseline", RECORDS) == ["linear"]


def test_options_that_came_later_are_open_in_older_records() -> None:
    assert changed_options({"a": 1}, {"a": 1, "new": None}) == []
    assert changed_options({"a": 1, "b": 2}, {"a": 2, "c": 3}) == ["a", "b", "c"]
