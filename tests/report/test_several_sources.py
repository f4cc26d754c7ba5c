"""A report of several sweeps, or runs, of the same backbone: nothing of them is mixed."""

from collections import Counter

import pytest
from fake_runs import cell, make_run, make_sweep

from capsprune.report import figures
from capsprune.report.claims import claims
from capsprune.report.collect import collect
from capsprune.report.markdown import markdown, plain_tables
from capsprune.report.page import write_page
from capsprune.report.page_figures import make_figures


def poorly(stage, summary):
    if "accuracy" in summary:
        summary["accuracy"] /= 2
    if "robustness" in summary:
        summary["coupling_entropy"] = [1.0, 0.5, 0.2]
        for record in summary["robustness"]:
            record.update(capsules=record["capsules"] / 2, linear=record["linear"] / 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two sweeps of one grid that came out differently, each alone and both together."""
    runs = tmp_path_factory.mktemp("runs")
    make_sweep(runs, name="good", seeds=(0, 1))
    make_sweep(runs, name="poor", seeds=(0, 1), change=lambda _, s, v: poorly(s, v))
    names = {"good": ["good"], "poor": ["poor"], "both": ["good", "poor"]}
    return {key: collect([(runs, name) for name in value]) for key, value in names.items()}


def drawn_on_the_page(results):
    return Counter(
        (figure.name, panel.up, tuple(trace["x"]), tuple(trace["y"]))
        for figure in make_figures(results)
        if figure.name != "latency"
        for panels in figure.groups.values()
        for panel in panels
        for trace in panel.traces
    )


def drawn_in_pictures(results):
    return Counter(
        (drawing.name, tuple(map(tuple, line.get_xydata())))
        for draw in figures.FIGURES
        if draw is not figures.latency_bars and (drawing := draw(results)) is not None
        for axes in drawing.figure.axes
        for line in axes.lines
    )


@pytest.mark.parametrize("drawn", [drawn_on_the_page, drawn_in_pictures])
def test_every_line_is_one_that_a_sweep_alone_has(results, drawn):
    both = drawn(results["both"])
    assert both == drawn(results["good"]) + drawn(results["poor"])
    assert both


def test_the_sweeps_are_told_apart_wherever_something_has_a_name(results):
    by_name = {figure.name: figure for figure in make_figures(results["both"])}
    for name in ("accuracy", "bottleneck"):
        labels = [key.label for key in by_name[name].keys]
        assert len(labels) == len(set(labels))
        assert {label.partition(":")[0] for label in labels} == {"good", "poor"}
        looks = {(key.color, key.dash, key.symbol) for key in by_name[name].keys}
        assert len(looks) == len(labels)
    for name in ("training", "robustness", "routing"):
        assert {group.partition(":")[0] for group in by_name[name].groups} == {"good", "poor"}
    titles = [p.title for panels in by_name["searches"].groups.values() for p in panels]
    assert titles == ["good: mobilenet_v1, 50 % pruned", "poor: mobilenet_v1, 50 % pruned"]
    (latency, *_) = (p for panels in by_name["latency"].groups.values() for p in panels)
    ticks = latency.layout["yaxis"]["ticktext"]
    assert len(ticks) == len(set(ticks)) == 8
    drawing = figures.accuracy_against_flops(results["both"])
    legend = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
    assert {"good", "poor"} <= legend


def test_one_sweep_is_not_named_at_every_line(results):
    for figure in make_figures(results["good"]):
        assert not any(
            "good" in label for label in [*figure.groups, *(k.label for k in figure.keys)]
        )


def table_of_backbones(results, tmp_path):
    text = markdown(results, [], [], tmp_path)
    (table,) = (part for part in text.split("\n\n") if "before fine-tuning" in part)
    return table.splitlines()[2:]


def test_backbones_of_different_sweeps_are_not_averaged(results, tmp_path):
    both = table_of_backbones(results["both"], tmp_path)
    alone = [
        line.replace("| digits", f"| {name} | digits")
        for name in ("good", "poor")
        for line in table_of_backbones(results[name], tmp_path)
    ]
    assert sorted(both) == sorted(alone)
    assert len(both) == 6  # the baseline, and at 0 and 50 %, of each


def test_claims_and_tables_are_those_of_each_sweep(results):
    assert {claim.evidence for claim in claims(results["both"])} == {
        claim.evidence for name in ("good", "poor") for claim in claims(results[name])
    }
    for (_, heading, lines, _), (_, _, good, _) in zip(
        plain_tables(results["both"]), plain_tables(results["good"]), strict=True
    ):
        assert heading[0] == "Source"
        assert [line[1:] for line in lines if line[0] == "good"] == good


def test_the_page_of_both_names_them(results, tmp_path):
    write_page(results["both"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count('<td class="words" data-order="poor">poor</td>') == 8


def test_runs_of_one_seed_are_sources_of_their_own(tmp_path):
    make_run(tmp_path, "first", cell())
    make_run(tmp_path, "second", cell(), change=poorly)
    results = collect([(tmp_path, "first"), (tmp_path, "second")])
    # The fake runs share the id of their backbones, as runs made from one checkpoint do.
    assert {row.source for row in results.rows} == {"first", "second"}
    assert all(len(row.cells) == 1 for row in results.rows)


def test_backbones_of_runs_that_are_no_seeds_of_each_other_stay_apart(tmp_path):
    make_run(tmp_path / "a", "first", cell())
    make_run(tmp_path / "b", "second", cell(), change=poorly)
    results = collect([(tmp_path / "a", "first"), (tmp_path / "b", "second")])
    assert {one.source for one in results.backbones} == {"first", "second"}
    assert {one.source for one in results.searches} == {"first", "second"}


def test_the_backbones_of_several_seeds_are_averaged(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"run-{seed}", cell(seed=seed))
    results = collect([(tmp_path, "run-0"), (tmp_path, "run-1")])
    assert {one.source for one in (*results.backbones, *results.searches)} == {""}


def test_one_seed_a_sweep_has_no_deviation(tmp_path):
    for seed, name in enumerate(("one", "two")):
        make_sweep(tmp_path, name=name, seeds=(seed,))
    notes = collect([(tmp_path, "one"), (tmp_path, "two")]).notes
    assert "There is one seed, so figures have no ±." in notes
