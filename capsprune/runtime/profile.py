"""Latency, throughput, memory, energy and the routing's share of exported networks."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capsprune import processes
from capsprune.capsules.head import ROUTING, onnx_operators
from capsprune.errors import CapspruneError
from capsprune.export.ort import onnxruntime
from capsprune.export.part_names import read_parts
from capsprune.files import scratch
from capsprune.runtime import meters
from capsprune.runtime.memory_probe import measure_memory
from capsprune.runtime.sessions import input_shape, provider_of, resolve_provider, session

#: A variant is repeated at least so often (or as often as was asked for) whatever it costs.
MIN_REPEATS = 5
#: Runs whose nodes are timed for the routing's share, after one that is not.
SHARE_RUNS = 5
#: An energy counter is read around runs that last this long together.
ENERGY_SECONDS = 2.0
#: Values of `Measurement.routing_kernel`.
NATIVE, PORTABLE = "native", "portable"
#: What is not the routing's in a file that names no parts.
_REST = "rest"

Pixels = NDArray[np.float32]
#: A variant's name, and whether it has capsprune's op library.
_Run = tuple[str, bool]


@dataclass(frozen=True)
class Measurement:
    """One variant at one batch size. None: there is no meter for it here."""

    variant: str
    #: Where it ran: "cpu" or "cuda".
    provider: str
    batch: int
    image_size: int
    #: Milliseconds of one run, images in and outputs back included: the median of the repeats.
    latency_ms: float
    #: The quartiles and the fastest of the repeats.
    latency_ms_p25: float
    latency_ms_p75: float
    latency_ms_min: float
    #: The batch over the median latency.
    images_per_second: float
    #: How often it was timed: fewer than asked for where the time budget was used up.
    repeats: int
    #: Peak resident memory of a process of its own, above that before the session was made; MB of
    #: 10^6 bytes. Reading the file often takes more than running it.
    peak_memory_mb: float | None
    #: The same, but the peak of the runs alone: weights and activations.
    running_memory_mb: float | None
    #: GPU memory in use after the runs, above that before the session was made; MB.
    gpu_memory_mb: float | None
    #: Joules of the GPU or of all processors for one image, what they use when idle included.
    energy_joules_per_image: float | None
    #: Share of the time in all nodes that is spent in the routing; 0.0 for a network without it.
    #: None on a GPU, whose nodes ONNX Runtime does not time.
    routing_share: float | None
    #: Shares of that time by part of the network, the routing one of them with the votes that it
    #: computes at once. None where the file names no parts, as one without a head, and on a GPU.
    part_shares: dict[str, float] | None
    #: What ran the routing: "native", capsprune's own kernel, "portable", the function of standard
    #: ops that the file carries, or None for a network without routing.
    routing_kernel: str | None
    #: Where the kernel was native: the median latency, and the share, with the portable function.
    portable_latency_ms: float | None
    portable_routing_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where networks are run."""

    #: "cpu", "cuda", or "auto": CUDA where it works for all variants, else the CPU.
    provider: str = "auto"
    #: Number of the GPU, where one is used.
    gpu: int = 0
    #: Threads that one operator may use on the CPU; None leaves it to ONNX Runtime.
    threads: int | None = None


@dataclass(frozen=True)
class Timing:
    """What is timed, and how often."""

    #: Pixels in one run; each is measured.
    batches: Sequence[int] = (1, 32)
    #: Timed runs of each variant at each batch.
    repeats: int = 30
    #: Runs before them that are not timed, at least 1.
    warmup: int = 5
    #: A variant that has used so many seconds of timed runs at one batch is timed no further, once
    #: it was timed 5 times; its warm-up is cut short likewise.
    budget_seconds: float = 20.0
    #: Of the random images.
    seed: int = 0


def profile_variants(
    variants: Mapping[str, Path],
    *,
    image_size: int,
    place: Place = Place(),
    timing: Timing = Timing(),
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Measurement]:
    """Measure exported networks beside each other.

    The repeats go round: each variant once, then each again, so that whatever else the machine does
    meanwhile hits all of them alike. A variant whose routing runs in capsprune's own kernel is
    timed with the portable kernel too.

    Args:
        variants: ONNX files by name, each with one input [batch, C, S, S].
        image_size: S.
        place: where they are run.
        timing: what is timed, and how often.
        folder: for ONNX Runtime's records of single runs, which are removed again; None for the
            system's temporary one.
        progress: called after each timed run with what was run, how many of the timed runs are
            done, those the budget cut included, and how many there are.

    Returns:
        One measurement for each batch and variant, in the order given, variants innermost.

    Raises:
        DeviceError: if the provider is not there.
        CapspruneError: if an argument is out of range, or a file cannot be run on such images.
    """
    provider, gpu, threads = place.provider, place.gpu, place.threads
    batches, repeats, budget_seconds = timing.batches, timing.repeats, timing.budget_seconds
    _check(variants, batches, repeats, timing.warmup, threads)
    chosen = resolve_provider(provider, gpu)
    if chosen == "cuda" and provider == "auto":
        # What is compared must run in one place.
        opened_on = {
            provider_of(session(path, provider="auto", threads=threads, gpu=gpu))
            for path in variants.values()
        }
        chosen = "cuda" if opened_on == {"cuda"} else "cpu"
    # Each variant, and beside it the same file without the op library where that has a part.
    sessions: dict[_Run, onnxruntime.InferenceSession] = {}
    kernels = {}
    for name, path in variants.items():
        opened = session(path, provider=chosen, threads=threads, gpu=gpu)
        sessions[name, True] = opened
        image = np.zeros(input_shape(opened, 1, image_size), np.float32)
        kernels[name] = _routing_kernel(path, image, chosen, threads, folder, gpu)
        if kernels[name] == NATIVE:
            sessions[name, False] = session(
                path, provider=chosen, threads=threads, native=False, gpu=gpu
            )
    measurements = []
    rounds = repeats * len(sessions)
    for index, batch in enumerate(batches):
        timed = {
            run: _Timed(
                opened,
                np.random.default_rng(timing.seed).standard_normal(
                    input_shape(opened, batch, image_size), dtype=np.float32
                ),
            )
            for run, opened in sessions.items()
        }
        for (name, _), timed_run in timed.items():
            _warm_up(name, timed_run, timing.warmup, budget_seconds)
        for turn, (name, native) in _time_in_turns(timed, repeats, budget_seconds):
            if progress is not None:
                what = name if native else f"{name}, portable routing"
                progress(f"{what}, batch {batch}", index * rounds + turn, len(batches) * rounds)
        for name, path in variants.items():
            own, portable = timed[name, True], timed.get((name, False))
            memory = _memory(path, own.images.shape, chosen, threads, gpu)
            p25, p50, p75 = np.percentile(own.seconds, [25, 50, 75]) * 1000

            shares = functools.partial(
                _shares, path, own.images, chosen, threads, budget_seconds, folder
            )
            parts = read_parts(own.session.get_modelmeta().custom_metadata_map)
            routing_share, part_shares = shares(native=True, parts=parts)
            measurements.append(
                Measurement(
                    variant=name,
                    provider=chosen,
                    batch=batch,
                    image_size=image_size,
                    latency_ms=float(p50),
                    latency_ms_p25=float(p25),
                    latency_ms_p75=float(p75),
                    latency_ms_min=min(own.seconds) * 1000,
                    images_per_second=batch / statistics.median(own.seconds),
                    repeats=len(own.seconds),
                    peak_memory_mb=memory["peak_memory_mb"],
                    running_memory_mb=memory["running_memory_mb"],
                    gpu_memory_mb=memory["gpu_memory_mb"],
                    energy_joules_per_image=_energy_per_image(
                        own, gpu if chosen == "cuda" else None
                    ),
                    routing_share=routing_share,
                    part_shares=part_shares,
                    routing_kernel=kernels[name],
                    portable_latency_ms=(
                        None if portable is None else statistics.median(portable.seconds) * 1000
                    ),
                    portable_routing_share=None if portable is None else shares(native=False)[0],
                )
            )
    return measurements


@dataclass
class _Timed:
    """A session, what it is fed, and how long each run took."""

    session: onnxruntime.InferenceSession
    images: Pixels
    seconds: list[float] = field(default_factory=list)

    def run(self) -> float:
        """Run once and return the seconds it took."""
        feed = {self.session.get_inputs()[0].name: self.images}
        started = time.perf_counter()
        self.session.run(None, feed)
        return time.perf_counter() - started


def _check(
    variants: Mapping[str, Path],
    batches: Sequence[int],
    repeats: int,
    warmup: int,
    threads: int | None,
) -> None:
    if not variants:
        raise CapspruneError("There is no exported network to profile; export one first.")
    if not batches or min(batches) < 1:
        raise CapspruneError(
            f"Batch sizes must be at least 1, not {', '.join(map(str, batches)) or 'none'}; "
            "give for example --batch 1."
        )
    if repeats < 1 or warmup < 0:
        raise CapspruneError(
            f"There must be at least 1 repeat and no fewer than 0 runs to warm up, not {repeats} "
            f"and {warmup}; give for example --repeats 30."
        )
    if threads is not None and threads < 1:
        raise CapspruneError(f"There must be at least 1 thread, not {threads}; give --threads 1.")


def _warm_up(name: str, timed: _Timed, warmup: int, budget_seconds: float) -> None:
    spent = 0.0
    for _ in range(max(warmup, 1)):
        try:
            spent += timed.run()
        except Exception as error:  # ONNX Runtime raises many kinds, with no common base.
            takes = timed.session.get_inputs()[0].shape
            raise CapspruneError(
                f"Variant '{name}' cannot be run on images {list(timed.images.shape)}: its file "
                f"takes {takes}; profile with the image size that it was exported with."
            ) from error
        if spent > budget_seconds / 4:
            return


def _time_in_turns(
    timed: Mapping[_Run, _Timed], repeats: int, budget_seconds: float
) -> Iterator[tuple[int, _Run]]:
    """Time one after the other, again and again; yield the turn's number and what was run."""
    turns = itertools.product(range(repeats), timed.items())
    for turn, (_, (name, own)) in enumerate(turns, start=1):
        if len(own.seconds) < MIN_REPEATS or sum(own.seconds) <= budget_seconds:
            own.seconds.append(own.run())
        yield turn, name


def _memory(
    path: Path, shape: tuple[int, ...], provider: str, threads: int | None, gpu: int = 0
) -> dict[str, float | None]:
    """Run the memory probe in a process of its own."""
    try:
        return processes.call(measure_memory, path, shape, provider, threads, gpu)
    except processes.ChildError as error:
        raise CapspruneError(
            f"The memory of '{path}' at batch {shape[0]} could not be measured ({error}); give a "
            "smaller --batch."
        ) from None


def _energy_per_image(timed: _Timed, gpu: int | None) -> float | None:
    runs = 0

    def work() -> None:
        nonlocal runs
        started = time.perf_counter()
        while runs == 0 or time.perf_counter() - started < ENERGY_SECONDS:
            timed.run()
            runs += 1

    joules = meters.energy_joules(work, gpu=gpu)
    return None if joules is None else joules / (runs * len(timed.images))


def _node_events(
    path: Path,
    images: Pixels,
    provider: str,
    threads: int | None,
    runs: int,
    budget_seconds: float,
    folder: Path | None,
    native: bool,
    gpu: int = 0,
) -> list[dict[str, Any]]:
    """Return the events of ONNX Runtime's profiler over one run, and as many more as asked for."""
    with scratch(folder or Path(tempfile.gettempdir()), "nodes") as directory:
        opened = session(
            path,
            provider=provider,
            threads=threads,
            native=native,
            profile_prefix=directory / "nodes",
            gpu=gpu,
        )
        profiled = _Timed(opened, images)
        spent = profiled.run()
        for _ in range(runs):
            spent += profiled.run()
            if spent > budget_seconds / 4:
                break
        try:
            return json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # It says nothing where it cannot write all of it.
            raise CapspruneError(
                f"ONNX Runtime's record of a run in {directory.parent} is incomplete; see "
                "that there is space left, and give the same command again."
            ) from None


def _shares(
    path: Path,
    images: Pixels,
    provider: str,
    threads: int | None,
    budget_seconds: float,
    folder: Path | None,
    *,
    native: bool,
    parts: Sequence[str] = (),
) -> tuple[float | None, dict[str, float] | None]:
    """Shares of the time in all nodes, where ONNX Runtime times them: of the routing, by part."""
    if provider == "cuda":
        return None, None
    events = _node_events(
        path, images, provider, threads, SHARE_RUNS, budget_seconds, folder, native
    )
    return routing_share_of(events), part_shares_of(events, parts) if parts else None


def _routing_kernel(
    path: Path,
    image: Pixels,
    provider: str,
    threads: int | None,
    folder: Path | None,
    gpu: int = 0,
) -> str | None:
    """What runs a file's routing in a session that has the op library."""
    try:
        events = _node_events(path, image, provider, threads, 0, 0.0, folder, True, gpu)
    except (CapspruneError, OSError):
        raise
    except Exception:  # Images that do not fit are told when the variant is warmed up.
        return None
    return routing_kernel_of(events)


def routing_kernel_of(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Tell from the events of an ONNX Runtime profile what ran the routing.

    Returns:
        "native", "portable", or None if there was no routing.
    """
    nodes = [event for event in events if event.get("cat") == "Node"]
    marks = onnx_operators()
    if any(event["args"].get("op_name") in marks for event in nodes):
        return NATIVE
    return PORTABLE if any(_is_routing(event, marks) for event in nodes) else None


def routing_share_of(events: Sequence[Mapping[str, Any]]) -> float:
    """Compute the routing's share of the time from the events of an ONNX Runtime profile.

    The first run is left out. A node is the routing's if its op, or what its name was made from,
    is an op of a head, such as `DynamicRouting`: a native kernel, the function's nodes that ONNX
    Runtime inlined, or the nodes of a file that was exported inlined.
    """
    return part_shares_of(events, ()).get(ROUTING, 0.0)


def part_shares_of(events: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> dict[str, float]:
    """Compute each part's share of the time from the events of an ONNX Runtime profile.

    The first run is left out. What ONNX Runtime puts in between on its own, such as a change of the
    layout, counts to the part of the node before.

    Args:
        events: of the profile.
        parts: of the network, as its file names them; the routing's nodes are a part of their own.

    Returns:
        Shares that add up to 1 by part; the routing only where there is one. Empty without events.
    """
    runs = sorted(e["ts"] for e in events if e["name"] == "model_run")
    second_run = runs[1] if len(runs) > 1 else 0
    marks = onnx_operators()
    spent: dict[str, float] = dict.fromkeys(parts, 0)
    part = parts[0] if parts else _REST
    for event in sorted(events, key=lambda event: event["ts"]):
        if (
            event.get("cat") != "Node"
            or not event["name"].endswith("_kernel_time")
            or event["ts"] < second_run
        ):
            continue
        if _is_routing(event, marks):
            part = ROUTING
        elif (before := event["name"].partition("/")[0]) in parts:
            part = before
        elif not parts:
            part = _REST
        spent[part] = spent.get(part, 0) + event["dur"]
    total = sum(spent.values())
    return {part: took / total for part, took in spent.items()} if total else {}


def _is_routing(event: Mapping[str, Any], marks: Iterable[str]) -> bool:
    """Tell whether a node is an op of a head, or of the standard ops written in its place."""
    op = str(event["args"].get("op_name"))
    return any(mark in event["name"] or mark == op for mark in marks)
