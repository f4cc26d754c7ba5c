import pytest

from capsprune.summaries import AnalysisSummary, ExportSummary, ProfileSummary
from capsprune.terminal import layout, listings, stages


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "not available"), (0, "0"), (999, "999"), (4.09e9, "4.09 G"), (25.6e6, "25.6 M")],
)
def test_counts(value, written):
    assert layout.count(value) == written


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_not_available(value):
    assert layout.percent(value) == layout.number(value) == "not available"


def evaluation(counts, accuracy=0.5, loss=0.25):
    classes = [
        {"class": name, "images": images, "accuracy": right / images if images else None}
        for name, (images, right) in counts.items()
    ]
    images = sum(one["images"] for one in classes)
    return {
        "checkpoint": "runs/default/caps",
        "model": "resnet18",
        "data": "digits",
        "split": "test",
        "accuracy": accuracy,
        "loss": loss,
        "images": images,
        "majority_rate": max(one["images"] for one in classes) / images,
        "classes": classes,
    }


def test_an_evaluation_names_the_worst_classes_and_those_without_images(capsys):
    counts = {f"class {n}": (10, n) for n in range(9)} | {"none": (0, 0)}
    stages.print_evaluation(evaluation(counts))
    out = capsys.readouterr().out
    assert "class 0: 0.00 % of 10, class 1: 10.00 % of 10, class 2" in out
    assert "class 5" not in out and "without images" in out
    assert "largest class" not in out


@pytest.mark.parametrize(
    ("counts", "accuracy", "told"),
    [
        ({"ill": (16, 0), "well": (984, 984)}, 0.984, True),  # it always says "well"
        ({"ill": (16, 16), "well": (984, 980)}, 0.996, True),
        ({"a": (50, 40), "b": (50, 40)}, 0.8, False),
        ({"a": (50, 10), "b": (50, 20)}, 0.3, True),  # worse than a guess
    ],
)
def test_the_rate_of_the_largest_class_stands_where_it_tells(capsys, counts, accuracy, told):
    stages.print_evaluation(evaluation(counts, accuracy))
    assert ("always naming the largest class" in capsys.readouterr().out) == told


def measurement(variant, batch, **changed):
    return {
        "variant": variant,
        "batch": batch,
        "provider": "cpu",
        "latency_ms": 1.5 * batch,
        "latency_ms_p25": 1.25 * batch,
        "latency_ms_p75": 1.75 * batch,
        "images_per_second": 666.4,
        "peak_memory_mb": 60.2,
        "routing_share": 0.25,
        "gpu_memory_mb": None,
        "energy_joules_per_image": None,
    } | changed


def test_a_profile_fits_a_terminal_and_has_no_made_up_zero(capsys):
    variants = ("unpruned, linear", "unpruned, capsules", "pruned, capsules")
    costs = {"forward_macs": 46_400_000, "parameters": 3_200_000, "file_bytes": 1}
    stages.print_profile(
        ProfileSummary.of(
            {
                "variants": dict.fromkeys(variants, costs),
                "measurements": [measurement(name, b) for name in variants for b in (32, 1)],
            }
        )
    )
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    labels = [row[0] for row in rows if row]
    assert labels.index("batch 1") < labels.index("batch 32")
    assert ["latency", "48.00 ms", "48.00 ms", "48.00 ms"] in rows
    assert rows.count(["GPU memory", *["not available"] * 3]) == 2
    assert rows.count(["energy/image", *["not available"] * 3]) == 2
    assert ["MACs", "46.4 M", "46.4 M", "46.4 M"] in rows


def test_a_slim_network_is_compared_with_the_unpruned_one(capsys):
    sizes = {
        "unpruned, linear": 1000,
        "unpruned, capsules": 3000,
        "pruned, capsules": 2000,
        "slim, capsules": 250,
    }
    stages.print_profile(
        ProfileSummary.of(
            {
                "variants": {
                    name: {"forward_macs": size, "parameters": 2 * size, "file_bytes": 4 * size}
                    for name, size in sizes.items()
                },
                "measurements": [
                    measurement(name, batch, latency_ms=size * batch / 1000)
                    for name, size in sizes.items()
                    for batch in (1, 32)
                ],
            }
        )
    )
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["MACs", "1 k", "3 k", "2 k", "250", "25.00 %"] in rows
    assert ["parameters", "2 k", "6 k", "4 k", "500", "25.00 %"] in rows
    assert ["file", "4 kB", "12 kB", "8 kB", "1 kB", "25.00 %"] in rows
    assert ["latency", "1.00 ms", "3.00 ms", "2.00 ms", "0.25 ms", "25.00 %"] in rows
    assert ["latency", "32.00 ms", "96.00 ms", "64.00 ms", "8.00 ms", "25.00 %"] in rows
    assert "slim of" in out


def network(trunk, head=0):
    part = {"parameters": trunk, "macs": 2 * trunk, "weight_bytes": 4 * trunk}
    parts = {"trunk": part}
    if head:
        parts["primary_caps"] = {"parameters": head, "macs": head, "weight_bytes": 4 * head}
        parts["routing"] = {"parameters": 0, "macs": 7, "weight_bytes": 0}
    return {"parts": parts}


def test_costs_of_a_run_are_told_by_part_side_by_side(capsys):
    measured = {"32": {"all": 4.0, "trunk": 1.0, "primary_caps": 2.5, "routing": 0.5}}
    sizes = {"bottleneck_channels": 24, "primary_capsules": 3}
    stages.print_costs(
        "default",
        {
            "baseline": network(2000) | {"milliseconds": {"1": {"all": 0.5}, "32": {"all": 8.0}}},
            "caps": network(1000, 500) | sizes | {"milliseconds": measured},
        },
    )
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row for row in rows if row] == [
        ["bottleneck, S", "", "24"],
        ["capsules, I", "", "3"],
        *(["parameters", "2 k", "1.5 k"], ["trunk", "2 k", "1 k"], ["primary caps", "", "500"]),
        *(["MACs", "4 k", "2.51 k"], ["trunk", "4 k", "2 k"], ["primary caps", "", "500"]),
        ["routing", "", "7"],
        *(["bytes of weights", "8 k", "6 k"], ["trunk", "8 k", "4 k"], ["primary caps", "", "2 k"]),
        ["ms, batch 1", "0.50", ""],
        ["ms, batch 32", "8.00", "4.00"],
        *(["trunk", "", "1.00"], ["primary caps", "", "2.50"], ["routing", "", "0.50"]),
    ]
    assert "includes the votes" in out


def test_an_unmeasured_routing_share_is_said(capsys):
    variants = {"only": {"forward_macs": 1, "parameters": 2, "file_bytes": 3}}
    rows = [measurement("only", 1, provider="cuda", routing_share=None, gpu_memory_mb=812.4)]
    stages.print_profile(ProfileSummary.of({"variants": variants, "measurements": rows}))
    out = capsys.readouterr().out
    assert "CUDA" in out and "812 MB" in out
    assert any("in routing" in line and "not available" in line for line in out.splitlines())


def analysis(linear):
    return {
        **{"images": 2000, "model": "mobilenet_v1", "data": "fashion-mnist", "frozen": False},
        **{"bottleneck_entropy": 0.7984, "active_share": 0.5, "primary_length": 0.574},
        **{"never_active": 3, "never_active_share": 3 / 128, "primary_capsules": 128},
        **{"coupling_entropy": [1.0, 0.9], "agreement_true": [0.02, 0.31]},
        "agreement_other": [-0.005, -0.25],
        "robustness": [
            {"distortion": name, "amount": amount, "unit": unit, "capsules": 0.5, "linear": linear}
            for name, amount, unit in (("none", 0, ""), ("shift", 5, "% of the side"))
        ],
    }


def test_an_analysis_fits_a_terminal(capsys):
    stages.print_analysis(AnalysisSummary.of(analysis(0.25)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["dead primary capsules", "3 of 128 (2.34 %)"] in rows
    assert ["2", "0.9000", "0.3100", "-0.2500"] in rows
    assert ["none", "", "50.00 %", "25.00 %"] in rows
    assert ["shift", "5 % of the side", "50.00 %", "25.00 %"] in rows


def test_an_analysis_without_a_control_has_no_column_for_it(capsys):
    stages.print_analysis(AnalysisSummary.of(analysis(None)))
    out = capsys.readouterr().out
    assert "linear" not in out and "not available" not in out


def test_no_runs_is_said(capsys):
    listings.print_runs([], "runs")
    assert capsys.readouterr().out == "There are no runs in runs.\n"


@pytest.mark.parametrize(
    ("outputs", "inline", "operators", "routing"),
    [
        (("class_probabilities", "poses"), False, ["DynamicRouting"], "capsprune::DynamicRouting"),
        (("class_probabilities", "poses"), True, ["DynamicRouting"], "standard operators"),
        (("class_probabilities", "poses"), False, [], "one iteration: matrix products"),
        (("class_probabilities", "poses"), True, [], "one iteration: matrix products"),
        (("class_probabilities",), False, [], "none"),
        # Of before the operators were written down.
        (("class_probabilities", "poses"), False, None, "capsprune::DynamicRouting"),
        (("class_probabilities",), False, None, "none"),
    ],
)
def test_an_export_says_how_it_routes(capsys, outputs, inline, operators, routing):
    stages.print_export(
        ExportSummary.of(
            {
                "path": "model.onnx",
                "bytes": 1_000_000,
                "opset": 18,
                "inline": inline,
                **({} if operators is None else {"operators": operators}),
                "inputs": {"image": ["batch", 3, 32, 32]},
                "outputs": {name: ["batch", 10] for name in outputs},
                "batches": [1, 2, 17],
                "max_abs_difference": 1e-7,
                "top1_agreement": 1.0,
            }
        )
    )
    row = next(line for line in capsys.readouterr().out.splitlines() if "routing" in line)
    assert routing in row


def test_claims_that_cannot_be_told_are_counted_alone(capsys):
    told = [("A is above B.", "holds"), ("C.", "cannot be told"), ("D.", "cannot be told")]
    listings.print_report([("T", ["a"], [["1"]], 1)], told, {"r": "not done: caps"}, ["x.md"])
    out = capsys.readouterr().out
    assert "A is above B." in out and "C." not in out
    assert "2 claims cannot be told from these results" in out
    assert "not done: caps" in out and "x.md" in out


def test_a_sweep_names_what_failed_and_counts_what_waits_for_it(capsys):
    cells = {"m-0-frozen-s0": {"pruned": 0.5, "caps": None}}
    failed = {"m-s1": "The cause; the remedy.", "m-0-s1": "not begun, as m-s1 failed"}
    listings.print_sweep("grid", cells, failed, "runs/grid")
    out = capsys.readouterr().out
    assert "m-0-frozen-s0" in out and "50.00 %" in out and "not available" in out
    assert "The cause; the remedy." in out
    assert "m-0-s1" not in out and "1 more" in out
    assert "capsprune report grid" in out
