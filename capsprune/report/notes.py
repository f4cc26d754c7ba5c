"""What a reader must know of how the figures were measured, one sentence each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from capsprune.report.results import Cell, Latency, Row, grouped
from capsprune.report.slim_claims import NOTE


def notes_on(
    rows: Sequence[Row],
    latencies: Sequence[Latency],
    weights: Collection[str],
    parts: Collection[float],
) -> tuple[str, ...]:
    """Say how the figures were measured.

    Args:
        rows: of the tables.
        latencies: that were measured.
        weights: what the baselines started from.
        parts: the part of the training images that they had.
    """
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    by_source = grouped(rows, lambda row: (row.data, row.source))
    for (data, source), group in by_source.items():
        several = sum(other == data for other, _ in by_source) > 1
        trained = [cell for row in group for cell in row.cells]
        notes.append(_scale(f"{data} ({source})" if several and source else data, trained))
    notes += [f"Starting weights of the backbones: {name}." for name in sorted(weights)]
    for part in sorted(part for part in parts if part < 1):
        notes.append(f"There was training on a part of the training images alone: {part:.3g}.")
    seeds = max((len({cell.seed for cell in row.cells}) for row in rows), default=0)
    if seeds > 1:
        notes.append(f"Figures are means over {seeds} seeds, ± their sample standard deviation.")
    elif seeds:
        notes.append("There is one seed, so figures have no ±.")
    if cells:
        notes.append(
            "Total training FLOPs are counted as in the paper: the multiply-accumulates of the "
            "convolutions of trunk and primary capsules for one image, times 3 where the trunk is "
            "finetuned and 2 where it is frozen."
        )
    if any(row.kind == "slim" for row in rows):
        notes.append(NOTE)
    meters = {cell.memory_meter for cell in cells if "peak_memory_mb" in cell.values}
    if "resident set" in meters:
        notes.append(
            "Memory while training is the peak resident set of the process on a CPU, the libraries "
            "and the images included; the paper's is of a GPU."
        )
    if "resident set" in meters and (threads := _range(cells, "threads")) != "unknown":
        notes.append(f"Seconds of an epoch are of so many threads of a CPU: {threads}.")
    if "NVML" in meters:
        notes.append(
            "Memory while training is GPU memory in use by all processes on it, as NVML tells it."
        )
    providers = sorted({latency.provider.upper() for latency in latencies})
    if providers:
        notes.append(
            f"Latencies are medians in ONNX Runtime on {' and '.join(providers)}, with quartiles."
        )
    return tuple(notes)


def _scale(data: str, cells: Sequence[Cell]) -> str:
    """What the networks of a data set were trained and tested on."""
    known = [
        f"images of {_range(cells, 'image_size')} pixels a side",
        f"{_range(cells, 'classes')} classes",
        f"{_range(cells, 'images')} test images",
        *(
            f"{_epochs(of)} for a head on a {trunk} trunk"
            for trunk in ("frozen", "finetuned")
            if (of := [cell for cell in cells if cell.trunk == trunk])
        ),
    ]
    return f"{data}: {', '.join(part for part in known if not part.startswith('unknown'))}."


def _epochs(cells: Sequence[Cell]) -> str:
    found = _range(cells, "epochs")
    return f"{found} epoch" if found == "1" else f"{found} epochs"


def _range(cells: Iterable[Cell], value: str) -> str:
    numbers = sorted({cell.values[value] for cell in cells if value in cell.values})
    if not numbers:
        return "unknown"
    if len(numbers) == 1:
        return f"{numbers[0]:g}"
    return f"{numbers[0]:g} to {numbers[-1]:g}"
