"""How long a network takes for one image in ONNX Runtime: what a search can be limited by."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from torch import nn

from capsprune.errors import ExportError
from capsprune.export.onnx_file import quiet_export
from capsprune.runtime.sessions import session

#: Runs before any is timed, and runs that are timed.
WARM_UP = 5
REPEATS = 30


def network_latency(
    network: nn.Module,
    image_size: int,
    *,
    provider: str = "auto",
    repeats: int = REPEATS,
    threads: int | None = None,
) -> float:
    """Measure a network on one image in ONNX Runtime.

    It is exported as it is, without verification: only its time matters here, and that does not
    depend on its weights.

    Args:
        network: maps images [batch, 3, H, W] to a tensor; it is left as it is.
        image_size: pixels a side.
        provider: as `capsprune.runtime.sessions.session` takes it.
        repeats: timed runs.
        threads: threads that one operator may use on the CPU.

    Returns:
        Milliseconds, the median of the timed runs.

    Raises:
        ExportError: if the network cannot be exported.
        DeviceError: if the provider is not there.
    """
    device = next(network.parameters()).device
    image = torch.zeros(1, 3, image_size, image_size, device=device)
    try:
        with quiet_export():
            program = torch.onnx.export(
                network.eval(), (image,), dynamo=True, verbose=False, input_names=["image"]
            )
            assert program is not None
            content = program.model_proto.SerializeToString()
    except Exception as error:  # The exporter raises many kinds, with no common base.
        raise ExportError(
            f"A candidate cannot be exported to measure its latency ({type(error).__name__}); "
            "search without --latency."
        ) from error
    opened = session(content, provider=provider, threads=threads)
    feed = {"image": np.zeros((1, 3, image_size, image_size), dtype=np.float32)}
    seconds = []
    for turn in range(WARM_UP + repeats):
        started = time.perf_counter()
        opened.run(None, feed)
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return median(seconds) * 1000
