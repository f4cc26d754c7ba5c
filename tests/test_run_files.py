"""Files of runs that nobody can rely on."""

import json

import pytest
from made_runs import COSTS, make

from capsprune.errors import RunError
from capsprune.run import open_run, read_run


def replaced(content, path, value):
    """Put a value in its place in parsed JSON; a key that is None takes what there is away."""
    *before, last = path
    for key in before:
        content = content[key]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


GONE = object()
BASELINE, PROFILED, ANALYSED = (
    ("stages", stage, "summary") for stage in ("baseline", "profile", "analysis")
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), 10**15),
        (("seed",), 10**30),
        (("seed",), -1),
        (("seed",), "0"),
        (("created",), "x" * 10**6),
        (("versions",), ["1"]),
        (("stages",), []),
        (("stages", "else"), {}),
        (("stages", "baseline"), None),
        (("stages", "baseline", "seconds"), float("nan")),
        (("stages", "baseline", "seconds"), -1.0),
        (("stages", "baseline", "id"), 3),
        (("stages", "baseline", "options"), [1]),
        (("stages", "baseline", "options", "epochs"), 1e308),
        (BASELINE, None),
        (BASELINE, {}),
        (BASELINE, []),
        ((*BASELINE, "model"), GONE),
        ((*BASELINE, "model"), 5),
        ((*BASELINE, "model"), "x" * 10**7),
        ((*BASELINE, "data"), None),
        ((*BASELINE, "data_root"), 5),
        ((*BASELINE, "data_root"), "nul\0"),
        ((*BASELINE, "accuracy"), None),
        ((*BASELINE, "accuracy"), 1.5),
        ((*BASELINE, "accuracy"), "much"),
        ((*BASELINE, "forward_macs"), 1e308),
        ((*BASELINE, "forward_macs"), True),
        ((*BASELINE, "epochs"), 10**9),
        ((*BASELINE, "energy_joules"), -1.0),
        ((*BASELINE, "later"), 1e300),
        ((*BASELINE, "later"), "x" * 10**6),
        ((*BASELINE, "later"), [[[[[[[[[[]]]]]]]]]]),
        ((*BASELINE, "later"), [0] * 1_100_000),
        (("stages", "caps", "summary", "frozen"), "no"),
        (("stages", "caps", "summary", "frozen"), GONE),
        (("stages", "onnx", "summary", "bytes"), GONE),
        (("stages", "onnx", "summary", "inputs"), {"image": 3}),
        ((*PROFILED, "measurements"), []),
        ((*PROFILED, "measurements"), [{}]),
        ((*PROFILED, "measurements", 0), "fast"),
        ((*PROFILED, "measurements", 0, "latency_ms"), None),
        ((*PROFILED, "variants"), {}),
        ((*PROFILED, "variants", "b"), COSTS),
        ((*PROFILED, "variants", "a"), []),
        ((*ANALYSED, "coupling_entropy"), 1),
        ((*ANALYSED, "coupling_entropy"), [0.0] * 1000),
        ((*ANALYSED, "robustness"), [1]),
        ((*ANALYSED, "robustness", 0, "capsules"), "good"),
        ((*ANALYSED, "never_active"), GONE),
    ],
)
def test_a_record_on_which_nobody_can_rely_is_damaged(whole, path, value):
    content = json.loads(whole.read_text())
    replaced(content, path, value)
    whole.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"run\.json is damaged \(.*\); give another --run") as error:
        read_run(whole.parent.parent, "r")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(whole))


@pytest.fixture
def whole(tmp_path):
    """The run.json of a run with some stages."""
    with open_run(tmp_path, "r", create=True) as run:
        make(run, "baseline", id="b1", epochs=2)
        make(run, "pruned", id="p1", parent="b1")
        make(run, "caps", id="c1", parent="p1")
        make(run, "onnx", id="o1", parent="c1")
        make(run, "profile", id="q1", parent="o1")
        make(run, "analysis", id="a1", parent="c1")
    return tmp_path / "r" / "run.json"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**6, b"null", b"[]", b"NaN"])
def test_a_run_file_that_is_no_record_is_damaged(whole, content):
    whole.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_run(whole.parent.parent, "r")


def test_what_a_later_version_adds_and_a_meter_lacks_is_read(whole):
    content = json.loads(whole.read_text())
    summary = content["stages"]["baseline"]["summary"]
    summary |= {"later": [1, {"a": None}], "energy_joules": None, "loss": None}
    whole.write_text(json.dumps(content))
    assert read_run(whole.parent.parent, "r").stages["baseline"].summary.to_dict() == summary
