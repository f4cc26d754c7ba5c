"""How long a network takes for one image in ONNX Runtime: what a search can be limited by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import onnx
from torch import nn

from capsprune.errors import ExportError
from capsprune.export.onnx_file import Draft, draft_onnx, draft_weights
from capsprune.export.ort import quiet_stderr
from capsprune.runtime.sessions import input_shape, session
from capsprune.runtime.template import GraphTemplate, TemplateError

#: Runs before any is timed, and runs that are timed.
WARM_UP = 5
REPEATS = 30
#: Exports from which on it is worth saying that graphs still cannot be made.
_FEW = 5


@dataclass
class LatencyMeter:
    """Measures pruned networks of one architecture on one image in ONNX Runtime.

    A network is exported as it is, without verification: only its time matters here, and that does
    not depend on its weights. From the third network on the graph is that of those before, with the
    weights of the network and the numbers that follow from their shapes; one that cannot be made so
    is exported too.

        meter = LatencyMeter(224, reference=unpruned)
        milliseconds = [meter(candidate) for candidate in candidates]
    """

    #: Pixels a side.
    image_size: int
    #: The unpruned network, or what else has no layer as narrow as those to measure: it is exported
    #: to compare with as soon as a second network is measured. Without it the first two are.
    reference: nn.Module | None = None
    #: As `capsprune.runtime.sessions.session` takes them.
    provider: str = "auto"
    threads: int | None = None
    #: Timed runs.
    repeats: int = REPEATS
    #: Told, once, that graphs cannot be made.
    say: Callable[[str], None] = lambda message: None
    #: Networks that were exported, the reference among them.
    exports: int = field(default=0, init=False)
    _template: GraphTemplate = field(default_factory=GraphTemplate, init=False, repr=False)
    _said: bool = field(default=False, init=False, repr=False)

    def __call__(self, network: nn.Module) -> float:
        """Measure a network, as `network_latency` does.

        Raises:
            ExportError: if the network cannot be exported.
            DeviceError: if the provider is not there.
        """
        if self.exports and self.reference is not None:
            reference, self.reference = self.reference, None
            self._learn(self._export(reference))
        if self._template.ready:
            try:
                with quiet_stderr():  # where ONNX Runtime would name what does not fit
                    return self._time(self._template.fill(draft_weights(network)))
            except Exception:  # Of a template, or of ONNX Runtime, which has no common base.
                if self.exports >= _FEW:
                    self._tell()
        draft = self._export(network)
        self._learn(draft)
        return self._time(draft.model)

    def _export(self, network: nn.Module) -> Draft:
        self.exports += 1
        return _draft(network, self.image_size)

    def _learn(self, draft: Draft) -> None:
        try:
            self._template.learn(draft.model, draft.weights)
        except TemplateError:
            self._tell()

    def _tell(self) -> None:
        if not self._said:
            self._said = True
            self.say(
                "Candidates differ by more than their numbers of channels, and are exported one by "
                "one to be measured, which takes longer"
            )

    def _time(self, model: onnx.ModelProto) -> float:
        return _milliseconds(model, self.image_size, self.provider, self.repeats, self.threads)


def network_latency(
    network: nn.Module,
    image_size: int,
    *,
    provider: str = "auto",
    repeats: int = REPEATS,
    threads: int | None = None,
) -> float:
    """Measure a single network on one image in ONNX Runtime.

    Args:
        network: a network with a head, or a classifier that gives logits; it is left as it is.
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
    model = _draft(network, image_size).model
    return _milliseconds(model, image_size, provider, repeats, threads)


def _draft(network: nn.Module, image_size: int) -> Draft:
    try:
        return draft_onnx(network, image_size)
    except ExportError as error:
        raise ExportError(
            "A candidate cannot be exported to measure its latency; search without --latency."
        ) from error


def _milliseconds(
    model: onnx.ModelProto, image_size: int, provider: str, repeats: int, threads: int | None
) -> float:
    opened = session(model.SerializeToString(), provider=provider, threads=threads)
    feed = {"image": np.zeros(input_shape(opened, 1, image_size), dtype=np.float32)}
    seconds = []
    for turn in range(WARM_UP + repeats):
        started = time.perf_counter()
        opened.run(None, feed)
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return median(seconds) * 1000
