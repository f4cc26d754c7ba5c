"""Damaged files beside run.json: the report names them and goes on with the rest."""

import json

import pytest
from fake_runs import cell, make_run, make_sweep

from capsprune.report.claims import claims
from capsprune.report.collect import collect
from capsprune.report.write import write_report

ROWS = {
    "a list": "[1, 2]",
    "a number": "3",
    "a text": '"row"',
    "null": "null",
    "NaN": "NaN",
    "no JSON": "{",
    "nested deeply": "[" * 100_000,
    "no UTF-8": b"\xff",
    "a number too large": '{"epoch": 1e999, "index": 1e999}',
    "of wrong types": '{"epoch": "one", "index": "one"}',
    "out of bounds": '{"epoch": -1, "index": -1, "flops_ratio": 0.5}',
    "not a number inside": '{"validation_loss": NaN, "index": 0, "flops_ratio": NaN}',
}


@pytest.mark.parametrize("content", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
    "file",
    ["baseline/metrics.jsonl", "caps/metrics.jsonl", "pruned/candidates.jsonl"],
)
def test_rows_that_are_none_are_left_out_and_named(tmp_path, file, content):
    make_run(tmp_path, "default", cell())
    path = tmp_path / "default" / file
    bad = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(path.read_bytes() + bad + b"\n")
    results = collect([(tmp_path, "default")])
    assert list(results.damaged) == [str(path)]
    assert file in results.missing["default"] and "left out" in results.missing["default"]
    assert len(results.rows) == 2 and len(results.backbones) == 2
    assert len(results.searches) == ("candidates" not in file)


def test_the_report_and_the_page_name_what_is_left_out_and_show_the_rest(tmp_path):
    make_run(tmp_path, "default", cell())
    rows = [
        {"index": 0, "flops_ratio": 0.5, "score": 0.2, "loss": None},
        {"index": 1, "flops_ratio": 0.5, "violation": 0.1},
        {"index": 2, "flops_ratio": 0.5, "score": 0.3},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "default" / "pruned" / "candidates.jsonl").write_text(text)
    (tmp_path / "default" / "caps" / "metrics.jsonl").write_text("[1]\n")
    results = collect([(tmp_path, "default")])
    assert [one["index"] for one in results.searches[0].scored] == [0, 2]
    write_report(results, tmp_path / "report", claims(results))
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "caps/metrics.jsonl is damaged" in text, name


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"variants": [], "measurements": []}', '{"variants": {"a": 1}}']
)
def test_a_sweep_profile_that_is_none_is_left_out_and_named(tmp_path, content):
    sweep = make_sweep(tmp_path, seeds=(0,))
    sweep.profile_path.write_text(content)
    results = collect([(tmp_path, "grid")])
    assert list(results.damaged) == [str(sweep.profile_path)]
    assert not results.latencies and len(results.rows) == 8


@pytest.mark.parametrize("content", ["{", "[]", '{"data": {"image_size": "big"}}'])
def test_a_description_that_is_none_is_left_out_and_named(tmp_path, content):
    make_run(tmp_path, "default", cell())
    path = tmp_path / "default" / "linear" / "architecture.json"
    path.write_text(content)
    results = collect([(tmp_path, "default")])
    assert list(results.damaged) == [str(path)]
    assert len(results.rows) == 2


def test_long_names_are_cut_and_stay_apart(tmp_path):
    for number in (0, 1):

        def lengthen(_, summary, number=number):
            if "data" in summary:
                summary["data"] = f"imagefolder:/{'x' * 2000}{number}{'y' * 2000}"

        make_run(tmp_path, f"run-{number}", cell(), change=lengthen)
    results = collect([(tmp_path, "run-0"), (tmp_path, "run-1")])
    names = {row.data for row in results.rows}
    assert len(names) == 2 and all(len(name) < 100 for name in names)
    assert len(results.rows) == 4
