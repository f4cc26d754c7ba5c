"""What is installed and found on this machine, and how to get what is missing."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from capsprune.data.names import DATA_SETS, FOLDER

_PACKAGES = (
    "capsprune",
    "torch",
    "torchvision",
    "torch-pruning",
    "lightning-fabric",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    found: str
    #: How to get it; empty where nothing is missing.
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return what was found, as it is written to JSON."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


def examine() -> list[Finding]:
    """Look at versions, devices, execution providers, the op library, and data."""
    return [*_versions(), *_devices(), _op_library(), *_data()]


def _versions() -> list[Finding]:
    findings = [Finding("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            findings.append(Finding(package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            # Of the two builds of ONNX Runtime, one is enough.
            if not package.startswith("onnxruntime"):
                findings.append(Finding(package, "missing", f"pip install {package}"))
    return findings


def _devices() -> list[Finding]:
    import psutil
    import torch

    from capsprune.runtime.meters import gpu_energy_joules, gpu_memory_used_mb
    from capsprune.runtime.sessions import resolve_provider

    memory = psutil.virtual_memory().total / 1e9
    findings = [
        Finding("cpu", f"{psutil.cpu_count(logical=False)} cores, {memory:.0f} GB of memory")
    ]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        findings.append(Finding("gpu for PyTorch", ", ".join(names)))
    else:
        findings.append(
            Finding("gpu for PyTorch", "none", "an NVIDIA GPU with its driver; the CPU serves too")
        )
    if resolve_provider("auto") == "cuda":
        findings.append(Finding("gpu for ONNX Runtime", "CUDA"))
    else:
        findings.append(
            Finding(
                "gpu for ONNX Runtime",
                "none",
                "an NVIDIA GPU with its driver, and onnxruntime-gpu; the CPU serves too",
            )
        )
    meters = {"gpu memory": gpu_memory_used_mb(), "gpu energy": gpu_energy_joules()}
    for name, value in meters.items():
        there = value is not None
        findings.append(
            Finding(
                f"{name} meter",
                "NVML" if there else "not available",
                "" if there else "an NVIDIA GPU, with a driver whose NVML measures it",
            )
        )
    return findings


def _op_library() -> Finding:
    from capsprune import native

    missing = native.why_missing()
    if missing is None:
        cuda = " and CUDA" if native.has_cuda() else ""
        return Finding("op library", f"{native.instruction_set()}{cuda}: {native.library_path()}")
    # Everything works without it: sessions run the function of standard ops inside the file.
    return Finding(
        "op library",
        f"{missing}: routing runs as standard operators",
        f"unset {native.SWITCH}"
        if native.switched_off()
        else "a C++17 compiler (apt-get install g++), then python -m capsprune.native",
    )


def _data() -> list[Finding]:
    from capsprune.data.sources import default_root

    root = default_root()
    findings = [
        Finding("data root", f"{root}{'' if root.is_dir() else ' (made when it is needed)'}"),
    ]
    for name in DATA_SETS:
        if name == FOLDER:
            continue
        known = DATA_SETS[name]
        if not known.places:
            findings.append(Finding(name, f"in {known.origin}"))
            continue
        place = next((root / place for place in known.places if (root / place).exists()), None)
        remedy = known.remedy or f"let train --data {name} fetch it"
        found = Finding(name, "not found", remedy) if place is None else Finding(name, str(place))
        findings.append(found)
    return findings
