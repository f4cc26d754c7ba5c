import pytest
from fake_runs import analysis, cell, make_run, make_sweep

from capsprune.bounds import cut_apart
from capsprune.errors import CapspruneError
from capsprune.report.collect import collect
from capsprune.report.columns import table_columns
from capsprune.run import open_run, read_run
from capsprune.summaries import AnalysisSummary


def row_of(results, pruned, trunk="finetuned", head="capsules"):
    (found,) = (
        row for row in results.rows if (row.pruned, row.trunk, row.head) == (pruned, trunk, head)
    )
    return found


def texts(results, row):
    return {column.key: column.text(row) for column in table_columns(results.rows)}


def test_a_sweep_gives_the_figures_of_table_1_over_its_seeds(tmp_path):
    make_sweep(tmp_path)
    results = collect([(tmp_path, "grid")])
    assert len(results.rows) == 8
    assert not results.missing
    shown = texts(results, row_of(results, 50))
    # 3 seeds: 81.0, 81.2, 81.4 %; 15.0, 15.1, 15.2 s.
    assert shown["accuracy"] == "81.20 ± 0.20"
    assert shown["epoch"] == "15.1 ± 0.1"
    assert (shown["pruned"], shown["bottleneck"], shown["capsules"]) == ("50", "512", "64")
    assert shown["training_flops"] == "1.50"
    assert shown["memory"] == "700"
    assert shown["seeds"] == "3"
    frozen = texts(results, row_of(results, 0, "frozen"))
    assert frozen["training_flops"] == "2.00"


def test_the_meter_stands_in_the_heading(tmp_path):
    make_sweep(tmp_path)
    headings = [c.heading for c in table_columns(collect([(tmp_path, "grid")]).rows)]
    assert "Memory while training (MB, resident set)" in headings


def test_what_was_not_measured_is_no_zero(tmp_path):
    make_run(tmp_path, "default", cell(), change=lambda _, s: s.pop("peak_memory_mb", None))
    results = collect([(tmp_path, "default")])
    assert texts(results, row_of(results, 50))["memory"] == "not available"
    assert texts(results, row_of(results, 50))["energy"] == "not available"
    assert texts(results, row_of(results, 50, head="linear"))["capsules"] == "not available"


def test_a_latency_belongs_to_the_network_that_was_measured(tmp_path):
    make_sweep(tmp_path)
    results = collect([(tmp_path, "grid")])
    cells = {c.seed: c for c in row_of(results, 50).cells}
    assert cells[0].values["latency_ms_batch_32"] == pytest.approx(48)
    assert "latency_ms_batch_32" not in cells[1].values, "seed 1 has another network"


def test_cells_that_are_missing_or_failed_are_named(tmp_path):
    absent, broken = "mobilenet_v1-50-frozen-s0", "mobilenet_v1-50-finetuned-s0"
    make_sweep(tmp_path, skip=(absent, broken), failed={broken: "Out of memory."}, seeds=(0,))
    results = collect([(tmp_path, "grid")])
    assert results.missing == {absent: "not begun", broken: "failed: Out of memory"}
    assert len(results.rows) == 4


def test_a_run_with_a_backbone_alone_still_has_its_search_and_training(tmp_path):
    make_run(tmp_path, "default", cell(), until="pruned")
    results = collect([(tmp_path, "default")])
    assert not results.rows
    assert [one.stage for one in results.backbones] == ["baseline", "pruned"]
    assert results.searches[0].pruned == 50
    assert "caps" in results.missing["default"]


def test_a_stage_that_is_out_of_date_is_left_out_and_named(tmp_path):
    make_run(tmp_path, "default", cell())
    with open_run(tmp_path, "default") as run:
        run._record.stages["pruned"].id = "newer"
        run._save()
    results = collect([(tmp_path, "default")])
    assert not results.rows
    assert "caps of run 'default' was made from an older pruned" in results.missing["default"]
    assert set(read_run(tmp_path, "default").unusable("report")) >= {"caps", "linear"}


def test_of_what_an_analysis_has_by_iteration_the_last_is_a_figure():
    found = analysis(cell(pruned=0)) | {"agreement_true": [], "primary_length": None}
    figures = AnalysisSummary.of(found).figures
    assert figures["coupling_entropy"] == 0.8 and figures["bottleneck_entropy"] == 0.4
    assert not {"agreement_true", "primary_length", "robustness"} & figures.keys()


def test_names_that_are_cut_stay_apart():
    assert cut_apart("short", 10) == "short"
    first, second = cut_apart("x" * 50 + "1", 10), cut_apart("x" * 50 + "2", 10)
    assert first != second and len(first) == len(second) < 30


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"run-{seed}", cell(seed=seed))
    results = collect([(tmp_path, "run-0"), (tmp_path, "run-1")])
    assert [len(row.cells) for row in results.rows] == [2, 2]


def test_runs_that_were_trained_differently_are_not_averaged(tmp_path):
    make_run(tmp_path, "short", cell(seed=0))
    make_run(tmp_path, "long", cell(seed=1), change=lambda _, s: s.update(epochs=50))
    results = collect([(tmp_path, "short"), (tmp_path, "long")])
    assert sorted(row.source for row in results.rows) == ["long", "long", "short", "short"]


def test_an_empty_run_has_nothing_to_report(tmp_path):
    with open_run(tmp_path, "default", create=True) as run:
        run.begin("baseline", {}, None)
    with pytest.raises(CapspruneError, match="nothing to report yet; first run"):
        collect([(tmp_path, "default")])


def test_an_empty_sweep_has_nothing_to_report(tmp_path):
    names = [f"mobilenet_v1-{p}-{t}-s0" for p in (0, 50) for t in ("frozen", "finetuned")]
    make_sweep(tmp_path, skip=names, seeds=(0,))
    with pytest.raises(CapspruneError, match="nothing to report yet; run 'capsprune sweep'"):
        collect([(tmp_path, "grid")])
