import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from fake_runs import cell, make_run, make_sweep
from typer.testing import CliRunner

from capsprune.cli import app
from capsprune.errors import CapspruneError
from capsprune.report import figures
from capsprune.report.charts import pictures
from capsprune.report.collect import collect
from capsprune.report.figures import make_figures
from capsprune.report.write import write_report
from capsprune.run import open_run

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    make_sweep(runs, seeds=(0, 1), skip=("mobilenet_v1-50-frozen-s1",))
    return collect([(runs, "grid")])


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    return directory, write_report(results, directory)


@pytest.fixture
def _one_figure(monkeypatch):
    """Where it is not the figures that matter."""
    monkeypatch.setattr(figures, "FIGURES", figures.FIGURES[:1])


def test_all_figures_are_there_as_png_and_as_svg(report):
    directory, files = report
    names = {"figure3", "search", "training", "latency", "robustness", "capsules"}
    assert {path.stem for path in files if path.suffix == ".svg"} == names
    for path in files:
        assert path.is_file()
        if path.suffix == ".png":
            assert path.read_bytes().startswith(PNG)
            assert path.stat().st_size > 5000
    assert {path.name for path in (directory / "figures").iterdir()} == {
        path.name for path in files if path.parent.name == "figures"
    }, "nothing half-written is left"


@pytest.mark.parametrize(
    ("figure", "labels"),
    [
        ("figure3", ["digits", "capsules, finetuned", "linear, frozen", "50 %", "test accuracy (%)",
                     "total training FLOPs for one image (B)"]),
        ("search", ["mobilenet_v1 on digits, 50 % pruned", "seed 0", "FLOPs that remain (%)"]),
        ("training", ["capsules, frozen", "linear, finetuned", "backbone, baseline", "epoch",
                      "validation loss"]),
        ("latency", ["CPU, digits, batch 1", "CPU, digits, batch 32", "routing",
                     "mobilenet_v1, 50 % pruned, capsules"]),
        ("robustness", ["test accuracy (%), rotation", "scale (times)", "capsules", "linear"]),
        ("capsules", ["routing iteration", "bits a unit", "0 %", "frozen"]),
    ],
)  # fmt: skip
def test_an_svg_carries_its_labels_as_text(report, figure, labels):
    tree = ElementTree.parse(report[0] / "figures" / f"{figure}.svg")
    words = {"".join(one.itertext()).strip() for one in tree.iter() if one.tag.endswith("text")}
    assert set(labels) <= {word.replace("\N{NO-BREAK SPACE}", " ") for word in words}


def test_the_same_results_give_the_same_pictures(report, results):
    figure = make_figures(results)[0]
    for ending, content in pictures(figure).items():
        assert content == (report[0] / "figures" / f"{figure.name}.{ending}").read_bytes()


def test_a_figure_without_data_is_left_out(tmp_path):
    make_run(tmp_path, "default", cell(), until="pruned")
    drawn = make_figures(collect([(tmp_path, "default")]))
    assert [figure.name for figure in drawn] == ["search", "training"]


def test_the_markdown_links_its_figures_and_names_what_is_missing(report):
    directory, _ = report
    text = (directory / "report.md").read_text()
    assert "| digits | mobilenet_v1 | finetuned | 50 | 512 | 64 | 1.50 | 700 |" in text
    assert "81.10 ± 0.14" in text
    assert "mobilenet_v1-50-frozen-s1: not begun" in text
    assert "## Linear baselines" in text
    assert "**holds**" in text
    for name in ("figure3", "latency"):
        assert f"](figures/{name}.png)" in text


def test_the_csv_gives_back_every_cell(report, results):
    with (report[0] / "results.csv").open() as file:
        lines = {(line["run"], line["head"]): line for line in csv.DictReader(file)}
    cells = [one for row in results.rows for one in row.cells]
    assert len(lines) == len(cells) == 14
    for one in cells:
        line = lines[one.run, one.head]
        assert (line["trunk"], int(line["pruned"]), int(line["seed"])) == (
            one.trunk,
            one.pruned,
            one.seed,
        )
        for name, value in one.values.items():
            assert float(line[name]) == value
        assert line["memory_meter"] == "resident set"
        if one.head == "linear":
            assert line["primary_capsules"] == ""


def report_json(*arguments):
    done = CliRunner().invoke(app, ["report", "--json", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.usefixtures("_one_figure")
def test_the_command_writes_into_the_run_and_tells_all_as_json(tmp_path):
    make_run(tmp_path, "default", cell())
    told = report_json("--runs-dir", tmp_path)
    assert (tmp_path / "default" / "report.md").is_file()
    assert "<html" in (tmp_path / "default" / "report.html").read_text()
    assert str(tmp_path / "default" / "results.csv") in told["files"]
    capsules = told["rows"][0]
    assert capsules["figures"]["accuracy"] == {"mean": 0.81, "deviation": None, "count": 1}
    assert {claim["verdict"] for claim in told["claims"]} >= {"holds", "cannot be told"}


@pytest.mark.usefixtures("_one_figure")
def test_several_sweeps_make_one_report_elsewhere(tmp_path):
    make_sweep(tmp_path, name="one", seeds=(0,))
    make_sweep(tmp_path, name="two", seeds=(0,), backbones=("resnet18",))
    output = tmp_path / "both"
    told = report_json("one", "two", "--runs-dir", tmp_path, "--output", output)
    assert {row["backbone"] for row in told["rows"]} == {"mobilenet_v1", "resnet18"}
    assert (output / "figures" / "figure3.png").is_file()
    assert not (tmp_path / "one" / "report.md").exists()


def test_several_names_need_a_place(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"run-{seed}", cell(seed=seed))
    done = CliRunner().invoke(app, ["report", "run-0", "run-1", "--runs-dir", str(tmp_path)])
    assert isinstance(done.exception, CapspruneError)
    assert "give --output a folder" in str(done.exception)


@pytest.mark.usefixtures("_one_figure")
def test_a_damaged_run_of_a_sweep_is_named_and_the_rest_reported(tmp_path):
    make_sweep(tmp_path, seeds=(0,))
    (tmp_path / "grid" / "mobilenet_v1-50-frozen-s0" / "run.json").write_text("{")
    done = CliRunner().invoke(app, ["report", "grid", "--json", "--runs-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert list(told["damaged"]) == ["mobilenet_v1-50-frozen-s0"]
    assert "run.json is damaged" in told["missing"]["mobilenet_v1-50-frozen-s0"]
    assert {row["trunk"] for row in told["rows"] if row["pruned"] == 50} == {"finetuned"}
    (line,) = done.stderr.splitlines()
    assert "mobilenet_v1-50-frozen-s0 is left out" in line and "run.json is damaged" in line
    assert "run.json is damaged" in (tmp_path / "grid" / "report.md").read_text(encoding="utf-8")
    assert "run.json is damaged" in (tmp_path / "grid" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_one_figure")
@pytest.mark.parametrize("damaged", ["one/sweep.json", "alone/run.json"])
def test_a_report_of_several_goes_on_without_the_one_that_is_damaged(tmp_path, damaged):
    make_sweep(tmp_path, name="one", seeds=(0,))
    make_sweep(tmp_path, name="two", seeds=(0,))
    make_run(tmp_path, "alone", cell())
    (tmp_path / damaged).write_text("[]")
    broken = damaged.split("/")[0]
    output = ("--output", str(tmp_path / "out"), "--runs-dir", str(tmp_path), "--json")
    done = CliRunner().invoke(app, ["report", "one", "two", "alone", *output])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert list(told["damaged"]) == [broken] and "damaged" in told["missing"][broken]
    assert f"Warning: {broken} is left out" in done.stderr
    alone = CliRunner().invoke(app, ["report", broken, *output])
    assert isinstance(alone.exception, CapspruneError) and "damaged" in str(alone.exception)


def test_runs_are_listed_beside_those_that_are_damaged(tmp_path):
    for name in ("good", "bad"):
        make_run(tmp_path, name, cell(), until="pruned")
    for name in ("grid", "broken"):
        make_sweep(tmp_path, name=name, seeds=(0,))
    (tmp_path / "bad" / "run.json").write_text("[]")
    (tmp_path / "broken" / "sweep.json").write_text("[]")
    (tmp_path / "grid" / "mobilenet_v1-50-frozen-s0" / "run.json").write_text("[]")
    listed = CliRunner().invoke(app, ["runs", "--runs-dir", str(tmp_path)])
    assert listed.exit_code == 0 and "good" in listed.stdout and "grid" in listed.stdout
    names = [line.split()[1] for line in listed.stderr.splitlines()]
    assert names == ["bad", "broken", "grid/mobilenet_v1-50-frozen-s0"]
    told = CliRunner().invoke(app, ["runs", "--json", "--runs-dir", str(tmp_path)])
    found = json.loads(told.stdout)
    assert found["good"] == ["baseline", "pruned"]
    assert "is damaged" in found["bad"]["damaged"] and "is damaged" in found["broken"]["damaged"]
    assert list(found["grid"]["damaged"]) == ["mobilenet_v1-50-frozen-s0"]


def test_an_unknown_name_brings_up_those_near_it(tmp_path):
    make_sweep(tmp_path, name="digits-grid", seeds=(0,))
    done = CliRunner().invoke(app, ["report", "digit-grid", "--runs-dir", str(tmp_path)])
    assert "did you mean digits-grid?" in str(done.exception)


def test_a_run_with_nothing_yet_costs_one_sentence_and_loses_nothing(tmp_path):
    with open_run(tmp_path, "default", create=True) as run:
        run.begin("baseline", {}, None)
    before = sorted(path for path in tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "capsprune", "report", "--runs-dir", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: Run 'default' has nothing to report yet; first run")
    assert done.stderr.count("\n") == 1
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_the_command_line_starts_without_what_draws():
    code = "import sys, capsprune.cli; sys.exit(bool({'altair', 'vl_convert'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
