"""Runs with made-up results, for tests of what keeps them."""

from capsprune.records import StageName
from capsprune.stages import STAGES

NETWORK = {"model": "tiny", "data": "digits", "forward_macs": 1, "parameters": 1, "frozen": False}
ONNX = {
    "path": "model.onnx",
    "bytes": 1,
    "opset": 18,
    "inline": False,
    "inputs": {"image": ["batch", 3, 8, 8]},
    "outputs": {"poses": ["batch", 3]},
    "batches": [1],
    "max_abs_difference": 0.0,
    "top1_agreement": 1.0,
}
MEASUREMENT = {
    "variant": "a",
    "provider": "cpu",
    "batch": 1,
    "latency_ms": 1.0,
    "latency_ms_p25": 1.0,
    "latency_ms_p75": 1.0,
    "routing_share": None,
}
COSTS = {"forward_macs": 1, "parameters": 1, "file_bytes": 1}
PROFILE = {"variants": {"a": COSTS}, "measurements": [MEASUREMENT]}
ANALYSIS = {
    "model": "tiny",
    "data": "digits",
    "images": 1,
    "bottleneck_entropy": 0.5,
    "active_share": 0.5,
    "primary_length": 0.5,
    "never_active": 0,
    "never_active_share": 0.0,
    "primary_capsules": 1,
    "coupling_entropy": [1.0],
    "agreement_true": [1.0],
    "agreement_other": [None],
    "robustness": [{"distortion": "none", "amount": 0, "unit": "", "capsules": 0.5}],
}
SUMMARIES = dict.fromkeys([*STAGES], NETWORK) | {
    "slim": NETWORK | {"capsules": 1, "capsules_of": 2},
    "onnx": ONNX,
    "profile": PROFILE,
    "analysis": ANALYSIS,
}


def make(run, stage: StageName, *, id: str, parent=None, overwrite=False, **options):
    """Do a stage as the pipeline does, leaving a folder with its id in it."""
    if run.finished(stage, options, parent, overwrite) is not None:
        return False
    work = run.begin(stage, options, parent)
    result = work / "result"
    result.mkdir()
    (result / "id").write_text(id)
    run.commit(
        stage, result, id=id, options=options, parent=parent, seconds=1.0, summary=SUMMARIES[stage]
    )
    return True
