"""Measure the routing against what it replaces, and print the table of targets.

    python tools/bench_routing.py [--repeats 9] [--only J=10]

float32, I = 256, D1 = 8, D2 = 16, 3 iterations. What is compared runs in turns, and medians are
given, so that whatever else the machine does hits both. Extra memory is the peak of a process of
its own above what was resident before.

The lower bound of a figure is its arithmetic (votes once, and their sums and agreements) over the
rate of a large matrix product, or the bytes that have to be moved (weight, inputs and outputs once)
over the rate of a large copy, whichever is longer; both rates are measured in the same run. The
lower bound with votes anew is that of a forward pass that keeps no votes from one iteration to the
next: with J = 200 and 64 samples they are 210 MB, more than any cache holds and than the targets
for memory allow.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from capsprune import native
from capsprune.capsules import dynamic_routing, squash
from capsprune.capsules.cost import routing_macs
from capsprune.capsules.routing_op import routing_model
from capsprune.runtime import meters, session

CAPSULES, D1, D2, ITERATIONS = 256, 8, 16, 3
#: (J, batch) of the two columns.
SHAPES = ((10, 128), (200, 64))


class ExpandedVotes(nn.Module):
    """A capsule layer as it is usually published: the weights are tiled over the batch."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take weight [J, I, D1, D2] and bias [J, D2]; the layer keeps [1, I, J, D2, D1]."""
        super().__init__()
        self.weight = nn.Parameter(weight.permute(1, 0, 3, 2).unsqueeze(0).contiguous())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, u: Tensor) -> Tensor:
        """Map u [batch, I, D1] to v [batch, J, D2]."""
        batch, capsules, _ = u.shape
        classes = self.weight.shape[2]
        tiled = self.weight.repeat(batch, 1, 1, 1, 1)
        stacked = torch.stack([u] * classes, dim=2).unsqueeze(-1)  # [batch, I, J, D1, 1]
        votes = (tiled @ stacked).squeeze(-1)  # [batch, I, J, D2]
        constant = votes.detach()
        logits = torch.zeros(batch, capsules, classes, 1, dtype=u.dtype, device=u.device)
        for iteration in range(ITERATIONS):
            coupling = torch.softmax(logits, dim=2)
            last = iteration == ITERATIONS - 1
            s = (coupling * (votes if last else constant)).sum(dim=1) + self.bias
            v = squash(s)
            if not last:
                logits = logits + (constant * v.unsqueeze(1)).sum(dim=-1, keepdim=True)
        return v


@dataclass
class Inputs:
    """Random tensors of one shape."""

    u: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def drawn(cls, classes: int, batch: int) -> Inputs:
        """Draw u [batch, I, D1], weight [J, I, D1, D2], bias [J, D2]."""
        generator = torch.Generator().manual_seed(0)
        u = squash(torch.randn(batch, CAPSULES, D1, generator=generator))
        weight = 0.1 * torch.randn(classes, CAPSULES, D1, D2, generator=generator)
        return cls(u, weight, torch.full((classes, D2), 0.1))


def training_step(kind: str, classes: int, batch: int) -> Callable[[], object]:
    """Forward and backward of one layer, "ours" or "expanded", with gradients of all inputs."""
    drawn = Inputs.drawn(classes, batch)
    u = drawn.u.requires_grad_()
    if kind == "expanded":
        layer = ExpandedVotes(drawn.weight, drawn.bias)
        parameters: list[Tensor] = list(layer.parameters())
        forward: Callable[[], Tensor] = lambda: layer(u)  # noqa: E731
    else:
        parameters = [drawn.weight.requires_grad_(), drawn.bias.requires_grad_()]
        forward = lambda: dynamic_routing(u, drawn.weight, drawn.bias, ITERATIONS)  # noqa: E731

    def step() -> object:
        return torch.autograd.grad(forward().sum(), [u, *parameters])

    return step


def onnx_run(kind: str, classes: int, batch: int) -> Callable[[int], object]:
    """A run in ONNX Runtime of "native", "portable" or "expanded"; it takes a batch size."""
    drawn = Inputs.drawn(classes, batch)
    if kind == "expanded":
        content = exported(ExpandedVotes(drawn.weight, drawn.bias).eval())
    else:
        content = routing_model(drawn.weight, drawn.bias, ITERATIONS).SerializeToString()
    opened = session(content, provider="cpu", native=kind == "native")
    u = drawn.u.numpy()
    name = opened.get_inputs()[0].name
    return lambda samples: opened.run(None, {name: u[:samples]})


def exported(layer: nn.Module) -> bytes:
    """What torch.onnx.export makes of a layer, for a batch of any size."""
    example = (torch.zeros(2, CAPSULES, D1),)
    dynamic = ({0: torch.export.Dim("batch")},)
    silent = io.StringIO()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        stdout, sys.stdout = sys.stdout, silent
        try:
            program = torch.onnx.export(layer, example, dynamo=True, dynamic_shapes=dynamic)
        finally:
            sys.stdout = stdout
        assert program is not None
        path = Path(folder) / "layer.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()


def extra_memory(what: str, kind: str, classes: int, batch: int) -> float:
    """Peak memory in MB that a step takes above what is resident; in a process of its own."""
    command = [sys.executable, __file__, "--probe", what, kind, str(classes), str(batch)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def probe(what: str, kind: str, classes: int, batch: int) -> float:
    """Measure the extra memory in this process."""
    if what == "training":
        training_step(kind, 2, 2)()  # Threads and libraries.
        step = training_step(kind, classes, batch)
    else:
        run = onnx_run(kind, classes, batch)
        run(1)
        step = lambda: run(batch)  # noqa: E731
    meters.reset_peak_resident()
    before = meters.resident_mb()
    step()
    peak = meters.peak_resident_mb()
    assert peak is not None
    return peak - before


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, timed one after the other, again and again."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


class LowerBound:
    """The rates of this machine, and the time that nothing here can beat."""

    def __init__(self) -> None:
        a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        source = torch.randn(64 << 20 >> 2)
        target = torch.empty_like(source)
        taken = in_turns({"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}, 9)
        self.flops = 2 * 2048**3 / taken["matmul"] * 1000
        # A copy reads and writes.
        self.bytes = 2 * source.numel() * 4 / taken["copy"] * 1000

    def milliseconds(
        self, classes: int, batch: int, *, training: bool = False, anew: bool = False
    ) -> float:
        """The lower bound of one forward pass, or of a training step: three times the arithmetic.

        With `anew`, votes are formed in every iteration.
        """
        macs = batch * routing_macs(CAPSULES, classes, D1, D2, ITERATIONS)
        if anew:
            macs += (ITERATIONS - 1) * batch * CAPSULES * classes * D1 * D2
        weight = classes * CAPSULES * D1 * D2
        moved = 4 * (weight + batch * (CAPSULES * D1 + classes * D2))
        times = 3 if training else 1
        return 1000 * times * max(2 * macs / self.flops, moved / self.bytes)

    def both(self, classes: int, batch: int) -> tuple[float, float]:
        """The bounds of a forward pass without and with votes anew."""
        once, anew = (self.milliseconds(classes, batch, anew=anew) for anew in (False, True))
        return once, anew


def row(
    what: str,
    shape: str,
    ours: float,
    theirs: float,
    target: float,
    bounds: tuple[float, ...],
    memory: tuple[float, float, float] | None = None,
) -> str:
    """One line of the table.

    Args:
        what: is compared with what.
        shape: J and batch.
        ours: milliseconds.
        theirs: likewise.
        target: of their ratio.
        bounds: milliseconds with votes formed once, and formed anew in each iteration, if known.
        memory: ours, theirs, and the target of their ratio, or 0 where there is none.
    """
    ratio = theirs / ours
    cells = [what, shape, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.1f} x", f"{target:g} x"]
    cells += [f"{bound:.2f}" for bound in bounds] + [""] * (2 - len(bounds))
    if memory is None:
        cells += ["", "", ""]
    else:
        mine, other, wanted = memory
        # Less than a page or two cannot be told from none.
        less = f"{other / max(mine, 0.1):.0f} x" if wanted else ""
        cells += [f"{mine:.1f} / {other:.0f} MB", less, f"{wanted:g} x" if wanted else ""]
    return "| " + " | ".join(cells) + " |"


def bench(classes: int, batch: int, repeats: int, bound: LowerBound) -> None:
    """Print the four rows of one shape."""
    shape = f"J={classes}, batch {batch}"
    large = classes > 10

    few = max(3, repeats // 3)
    steps = {kind: training_step(kind, classes, batch) for kind in ("ours", "expanded")}
    taken = in_turns(steps, few if large else repeats)
    del steps
    used = {kind: extra_memory("training", kind, classes, batch) for kind in taken}
    at: tuple[float, ...] = (bound.milliseconds(classes, batch, training=True),)
    memory = (used["ours"], used["expanded"], 15.0 if large else 10.0)
    what = "PyTorch training step / expanded votes"
    target = 20.0 if large else 15.0
    print(row(what, shape, taken["ours"], taken["expanded"], target, at, memory), flush=True)

    runs = {kind: onnx_run(kind, classes, batch) for kind in ("native", "portable")}
    at = bound.both(classes, batch)
    taken = in_turns({kind: partial(run, batch) for kind, run in runs.items()}, repeats)
    used = {kind: extra_memory("onnx", kind, classes, batch) for kind in taken}
    memory = (used["native"], used["portable"], 20.0 if large else 0.0)
    what = "ONNX Runtime, native / portable"
    target = 5.0 if large else 3.0
    print(row(what, shape, taken["native"], taken["portable"], target, at, memory), flush=True)

    taken = in_turns({kind: partial(run, 1) for kind, run in runs.items()}, 3 * repeats)
    single = f"J={classes}, batch 1"
    target = 3.0 if large else 2.0
    at_one = bound.both(classes, 1)
    print(row(what, single, taken["native"], taken["portable"], target, at_one), flush=True)

    del runs["native"]
    runs["expanded"] = onnx_run("expanded", classes, batch)
    taken = in_turns({kind: partial(run, batch) for kind, run in runs.items()}, few)
    what = "ONNX Runtime, portable / expanded votes, exported"
    print(row(what, shape, taken["portable"], taken["expanded"], 2.0, at), flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", help="only the shapes whose name has this, such as J=10,")
    parser.add_argument("--probe", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        what, kind, classes, batch = options.probe
        print(json.dumps(probe(what, kind, int(classes), int(batch))))
        return
    bound = LowerBound()
    print(
        f"Kernels: {native.instruction_set() or 'none, the op library is missing'}; "
        f"{torch.get_num_threads()} threads; matmul {bound.flops / 1e9:.0f} GFLOP/s, "
        f"copy {bound.bytes / 1e9:.1f} GB/s\n"
    )
    print(
        "| what / against | shape | ms | against, ms | faster | target | lower bound, ms "
        "| with votes anew | extra memory | less | target |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for classes, batch in SHAPES:
        if not options.only or options.only in f"J={classes}, batch {batch}":
            bench(classes, batch, options.repeats, bound)


if __name__ == "__main__":
    main()
