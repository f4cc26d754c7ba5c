"""A report of several sweeps, or runs, of the same backbone: nothing of them is mixed."""

from collections import Counter

import pytest
from fake_runs import cell, make_run, make_sweep

from capsprune.report.claims import claims
from capsprune.report.collect import collect
from capsprune.report.figures import make_figures
from capsprune.report.markdown import markdown, plain_tables
from capsprune.report.page import write_page


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


def lines(results):
    """Give the points of each line, and of each search, in all figures."""
    found = Counter()
    for figure in make_figures(results):
        if figure.name == "latency":
            continue
        for panel in figure.spec["concat"]:
            # One panel alone has its data one step up.
            source = panel if "data" in panel else figure.spec
            records = figure.spec["datasets"][source["data"]["name"]]
            for key in {record.get("key", record["series"]) for record in records}:
                line = [r for r in records if r.get("key", r["series"]) == key]
                up = str(panel["title"]["subtitle"])
                found[figure.name, up, tuple((r["x"], r["y"]) for r in line)] += 1
    return found


def test_every_line_is_one_that_a_sweep_alone_has(results):
    both = lines(results["both"])
    assert both == lines(results["good"]) + lines(results["poor"])
    assert both


def titles(figure):
    return [" ".join(panel["title"]["text"]) for panel in figure.spec["concat"]]


def test_the_sweeps_are_told_apart_wherever_something_has_a_name(results):
    by_name = {figure.name: figure for figure in make_figures(results["both"])}
    labels = by_name["figure3"].labels
    assert len(labels) == len(set(labels))
    networks = [label for label in labels if ":" in label]
    assert {label.partition(":")[0] for label in networks} == {"good", "poor"}
    assert len(networks) == 8
    for name in ("search", "training", "robustness", "capsules"):
        found = titles(by_name[name])
        assert {"(good)" in title for title in found} == {True, False}
        assert all(("(good)" in title) != ("(poor)" in title) for title in found)
    spec = by_name["latency"].spec
    bars = spec["datasets"][spec["concat"][0]["data"]["name"]]
    names = {record["place"]: record["label"] for record in bars}
    assert len(set(names.values())) == len(names) == 8


def test_one_sweep_is_not_named_at_every_line(results):
    for figure in make_figures(results["good"]):
        assert not any("good" in text for text in [*figure.labels, *titles(figure)])


def table_of_backbones(results):
    text = markdown(results, [], [], "figures")
    (table,) = (part for part in text.split("\n\n") if "before fine-tuning" in part)
    return table.splitlines()[2:]


def test_backbones_of_different_sweeps_are_not_averaged(results):
    both = table_of_backbones(results["both"])
    alone = [
        line.replace("| digits", f"| {name} | digits")
        for name in ("good", "poor")
        for line in table_of_backbones(results[name])
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
    both = results["both"]
    write_page(both, tmp_path / "report.html", claims(both), [])
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
