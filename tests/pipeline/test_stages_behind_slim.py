"""What comes behind `prune-caps` takes the slim network, and without it the capsule network."""

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from toy_pipeline import MADE, SIZE

from capsprune.checkpoint import load_checkpoint
from capsprune.errors import RunError
from capsprune.run import read_run
from capsprune.terminal.outcomes import show_checkpoint, show_inspection
from capsprune.terminal.stages import print_result

#: One capsule of three, and one routing iteration: no operator of our own is left.
SLIM = {"capsules": 1, "iterations": 1, "round_to": 1, "epochs": 0}


@pytest.fixture
def slim(finished):
    """A run that has all stages, and a slim network since."""
    outcome = finished.do("prune-caps", **SLIM)
    return finished, outcome


def network_of(place, stage):
    return load_checkpoint(place.path(stage)).network


def test_export_takes_it_and_says_that_the_file_was_of_another(slim):
    place, _ = slim
    before = place.stages()
    with pytest.raises(RunError, match=r"made with caps as input instead of slim.*--overwrite"):
        place.do("export", **MADE["export"])
    assert place.stages() == before
    summary = place.do("export", **MADE["export"], overwrite=True).to_dict()
    assert summary["operators"] == [] and summary["max_abs_difference"] < 1e-4
    model = onnx.load(place.path("onnx", "model.onnx"))
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    images = torch.randn(3, 3, SIZE, SIZE)
    probabilities, _ = ReferenceEvaluator(model).run(None, {"image": images.numpy()})
    with torch.no_grad():
        expected = network_of(place, "slim")(images).class_probabilities
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-5, rtol=0)


def test_profile_shows_it_last_and_the_table_compares_it(slim, capsys):
    place, _ = slim
    place.do("export", **MADE["export"], overwrite=True)
    outcome = place.do("profile", **MADE["profile"], overwrite=True)
    summary = outcome.to_dict()
    assert list(summary["variants"]) == [
        *("unpruned, linear", "unpruned, capsules", "pruned, capsules", "slim, capsules")
    ]
    sizes = [variant["parameters"] for variant in summary["variants"].values()]
    assert sizes[3] == sum(p.numel() for p in network_of(place, "slim").parameters())
    assert sizes[3] < sizes[2] < sizes[1]
    files = [variant["file_bytes"] for variant in summary["variants"].values()]
    assert files[3] == place.path("onnx", "model.onnx").stat().st_size
    rows = {row["variant"]: row for row in summary["measurements"]}
    assert rows["slim, capsules"]["routing_kernel"] is None
    assert rows["slim, capsules"]["routing_share"] == 0.0
    assert rows["slim, capsules"]["portable_latency_ms"] is None
    assert "routing" not in rows["slim, capsules"]["part_shares"]
    assert "routing" in rows["pruned, capsules"]["part_shares"]
    capsys.readouterr()
    print_result(read_run(place.folder, "toy").stages, [("run", "here")])
    out = capsys.readouterr().out
    assert "slim, capsules" in out and "slim of" in out
    (line,) = (line for line in out.splitlines() if line.startswith("│ file "))
    assert f"{100 * files[3] / files[0]:.2f} %" in line


def test_analyse_and_evaluate_take_it(slim):
    place, _ = slim
    figures = place.do("evaluate").to_dict()
    assert figures["checkpoint"] == str(place.path("slim"))
    summary = place.do("analyse", **MADE["analyse"], overwrite=True).to_dict()
    assert (summary["network"], summary["primary_capsules"]) == ("slim, capsules", 1)
    assert len(summary["coupling_entropy"]) == 1
    # The linear baseline on the trunk that capsules were attached to.
    assert all(row["linear"] is not None for row in summary["robustness"])


def test_inspect_shows_it_beside_what_it_was_made_from(slim, capsys):
    place, _ = slim
    place.do("export", overwrite=True)
    place.do("profile", **MADE["profile"], overwrite=True)
    outcome = place.do("inspect")
    costs = outcome.to_dict()
    assert [*costs][:4] == ["baseline", "pruned", "caps", "slim"]
    assert costs["slim"]["parameters"] < costs["caps"]["parameters"]
    assert costs["slim"]["primary"] == "dense" and costs["slim"]["routing_iterations"] == 1
    assert set(costs["slim"]["milliseconds"]["1"]) == {
        *("all", "trunk", "primary_caps", "output_caps")
    }
    assert set(costs["caps"]["milliseconds"]["1"]) > {"routing"}
    capsys.readouterr()
    show_inspection(outcome, False)
    header = capsys.readouterr().out.splitlines()[2]
    assert [cell.strip() for cell in header.split("┃")[2:6]] == [
        *("baseline", "pruned", "caps", "slim")
    ]


def test_the_summary_says_what_is_left(slim, capsys):
    _, outcome = slim
    capsys.readouterr()
    show_checkpoint(outcome, False)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    found = {row[0]: row[1] for row in rows if len(row) == 2}
    assert found["bottleneck, primary capsules"].endswith("I = 1 of 3")
    assert found["routing iterations"] == "1 of 3"
    assert found["parameters that remain"].endswith(" %") and found["before pruning"]


def test_without_it_nothing_changes(finished):
    finished.do("export", **MADE["export"])
    assert "onnx is done already" in finished.said
    summary = finished.do("profile", **MADE["profile"]).to_dict()
    assert list(summary["variants"])[-1] == "pruned, capsules"
    assert finished.do("analyse", **MADE["analyse"]).to_dict()["network"] == "pruned, capsules"
