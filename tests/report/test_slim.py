"""Slim networks in a report: rows of their own, their figures, and what PrunedCaps claims."""

import csv
from itertools import pairwise

import pytest
from fake_runs import cell, make_run, make_sweep

from capsprune.report.claims import claims
from capsprune.report.collect import collect
from capsprune.report.figures import make_figures
from capsprune.report.write import write_report

SIZES = ("half", "few", "hardly", "rank")
NAMES = {"capsules-kept", "size", "bytes"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    make_sweep(runs, pruned=(50,), trunks={"finetuned": {}}, slim=SIZES)
    return collect([(runs, "grid")])


def slim_rows(results):
    return {row.slim: row for row in results.rows_of("slim")}


def records(figure, place=0):
    panel = figure.spec["concat"][place]
    return figure.spec["datasets"][(panel if "data" in panel else figure.spec)["data"]["name"]]


def drawn(results, name):
    return next(figure for figure in make_figures(results) if figure.name == name)


def verdict(found, words):
    (claim,) = (claim for claim in found if words in claim.statement)
    return claim


def test_each_size_is_a_row_beside_the_network_it_was_made_from(results):
    rows = slim_rows(results)
    assert list(rows) == ["half", "few", "hardly", "rank"], "the most capsules first, ranks last"
    few = rows["few"]
    assert few.spread("accuracy").mean == pytest.approx(0.81)
    assert few.spread("accuracy_whole").mean == pytest.approx(0.812)
    assert few.spread("primary_capsules").mean == 3
    assert few.spread("primary_capsules_whole").mean == 64
    assert few.spread("head_parameters").mean < few.spread("trunk_parameters").mean
    assert (few.criterion, few.asked, few.trunk) == ("coupling", "capsules", "finetuned")
    assert few.spread("file_bytes").mean == 500_000, "of its own ONNX file, not of the capsules'"
    assert len(results.rows_of("capsules")) == len(results.rows_of("linear")) == 1
    assert not results.missing


def test_latencies_are_those_of_the_slim_network_that_was_measured(results):
    few = slim_rows(results)["few"]
    assert few.spread("latency_ms_batch_1").count == 1
    assert few.spread("routing_ms_batch_32").mean == pytest.approx(1.5 * 32 * 0.25 * 0.05)


def test_accuracy_is_drawn_against_capsules_and_against_rank(results):
    figure = drawn(results, "capsules-kept")
    points = {(r["key"], r["x"]): r for r in records(figure)}
    assert {x for key, x in points if key == "coupling after fine-tuning"} == {1, 3, 32}
    assert points["coupling before it", 3]["hollow"]
    assert points["whole network", 64]["y"] == pytest.approx(81.2)
    assert {r["x"] for r in records(figure, 1)} == {8}


def test_bars_are_stacked_from_the_trunk_to_the_last_layer(results):
    bars = {}
    for part in records(drawn(results, "bytes")):
        bars.setdefault(part["label"], []).append(part)
    assert list(bars) == ["baseline", "pruned", "capsules", "half", "few", "hardly", "rank"]
    assert [part["series"] for part in bars["capsules"]] == ["trunk", "PrimaryCaps", "OutputCaps"]
    for parts in bars.values():
        assert parts[0]["from"] == 0 and parts[-1]["to"] == pytest.approx(parts[0]["end"])
        assert all(a["to"] == b["from"] for a, b in pairwise(parts))


def test_all_kinds_of_networks_are_compared_by_size(results):
    kinds = {record["series"] for record in records(drawn(results, "size"))}
    assert kinds == {"slim capsule network", "capsule network", "linear baseline"}


def test_what_pruned_caps_claims_is_judged(results):
    found = claims(results)
    assert verdict(found, "50 % of its").verdict == "holds"
    few = verdict(found, "95 % of its")
    assert few.verdict == "holds"
    assert "3 of 64 capsules by coupling: 81.00 % against 81.20 % of the whole network" in (
        few.evidence
    )
    assert "difference -0.20 ± 0.00 points (3 seeds)" in few.evidence
    assert verdict(found, "98 % of its").verdict == "does not hold"
    assert verdict(found, "75 % of its").verdict == "cannot be told"
    assert verdict(found, "at rank 8 ").verdict == "holds"
    assert verdict(found, "at rank 16 ").verdict == "cannot be told"
    faster = verdict(found, "times as fast")
    assert faster.verdict == "holds" and "batch 32: 20.0 times against 9.9" in faster.evidence


def test_with_one_seed_the_test_images_leave_it_open(tmp_path):
    make_sweep(tmp_path, pruned=(50,), trunks={"finetuned": {}}, seeds=(0,), slim=("few",))
    assert verdict(claims(collect([(tmp_path, "grid")])), "95 % of its").verdict == "undecided"


def test_a_network_that_was_fine_tuned_alike_is_what_is_compared_with(tmp_path):
    def change(cell, stage, summary):
        if stage == "slim" and cell.slim == "whole":
            summary["accuracy"] += 0.02

    sizes = ("few", "whole")
    make_sweep(tmp_path, pruned=(50,), trunks={"finetuned": {}}, slim=sizes, change=change)
    results = collect([(tmp_path, "grid")])
    claim = verdict(claims(results), "95 % of its")
    assert claim.verdict == "does not hold"
    assert "of the whole network, fine-tuned alike" in claim.evidence
    series = {record["series"] for record in records(drawn(results, "capsules-kept"))}
    assert series == {"coupling", "whole network", "whole network, fine-tuned alike"}


def test_a_report_without_slim_networks_says_nothing_of_them(tmp_path):
    make_sweep(tmp_path, pruned=(50,), seeds=(0,))
    results = collect([(tmp_path, "grid")])
    assert not NAMES & {figure.name for figure in make_figures(results)}
    assert not any("PrunedCaps" in claim.statement for claim in claims(results))


@pytest.mark.slow
def test_a_run_of_its_own_has_its_slim_network_reported(tmp_path):
    make_run(tmp_path, "default", cell(slim="few"))
    results = collect([(tmp_path, "default")])
    (row,) = results.rows_of("slim")
    assert row.slim == "capsules 0.05" and row.cells[0].analysis is not None
    assert row.spread("file_bytes").mean == 500_000
    (whole,) = results.rows_of("capsules")
    assert whole.spread("file_bytes") is None, "the file and the analysis are of the slim one"
    files = write_report(results, tmp_path / "report")
    assert {path.stem for path in files} >= NAMES
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "| finetuned | capsules 0.05 | coupling | 50 | 64 | 3 |" in text
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert '<section id="slim-networks"' in page
    with (tmp_path / "report" / "results.csv").open() as file:
        lines = {(line["head"], line["slim"]): line for line in csv.DictReader(file)}
    assert set(lines) == {("capsules", ""), ("linear", ""), ("capsules", "capsules 0.05")}
    assert lines["capsules", "capsules 0.05"]["primary_capsules"] == "3"


def test_a_size_that_is_missing_is_named(tmp_path):
    name = "mobilenet_v1-50-finetuned-few-s0"
    make_sweep(tmp_path, pruned=(50,), trunks={"finetuned": {}}, seeds=(0,), slim=("half", "few"),
               skip=(name,), failed={name: "Out of memory."})  # fmt: skip
    results = collect([(tmp_path, "grid")])
    assert results.missing == {name: "failed: Out of memory"}
    assert set(slim_rows(results)) == {"half"}
