"""How long pruned networks take with the head that they will get: what `prune --latency` limits."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from capsprune.backbones.registry import backbone
from capsprune.backbones.trunk import trunk_of, trunk_output
from capsprune.capsules.heads import HEADS
from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.session import Session
from capsprune.progress import Progress
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.evaluation import LatencyLimit
from capsprune.pruning.layers import prunable_layers
from capsprune.pruning.space import SearchSpace
from capsprune.pruning.target import LARGEST_MAX_RATE, Target

#: Steps of the search for the FLOPs that a latency allows: it is found to within 1 %.
_STEPS = 6


class HeadedLatency:
    """Measures pruned backbones, each with an untrained head in place of its classifier."""

    def __init__(self, network: Prunable, kind: str, d1: int, progress: Progress) -> None:
        """Measure nothing yet.

        Args:
            network: the unpruned backbone.
            kind: name of the head.
            d1: values in a primary capsule, for heads that have any.
            progress: told, once, where measuring takes longer than it could.
        """
        from capsprune.runtime.latency import LatencyMeter  # which takes onnx to import

        self._name, self._image_size = network.name, network.image_size
        classifier = prunable_layers(network.model)[backbone(network.name).classifier]
        self._classes = classifier.size("out")
        self._kind, self._d1 = kind, d1
        self._meter = LatencyMeter(
            network.image_size, reference=self.with_head(network.model), say=progress.say
        )

    def __call__(self, pruned: nn.Module) -> float:
        """Return the milliseconds that a pruned backbone takes for one image.

        Raises:
            ExportError: if it cannot be exported.
        """
        return self._meter(self.with_head(pruned))

    def with_head(self, pruned: nn.Module) -> nn.Module:
        """Put an untrained head on the trunk of a backbone, which is left as it is."""
        trunk = trunk_of(self._name, pruned)
        features = trunk_output(trunk, self._image_size)
        head = HEADS[self._kind]
        given = {}
        if "d1" in head.config.model_fields:
            # A trunk too narrow for one capsule is measured as if capsules were as small as it is.
            given["d1"] = min(self._d1, features.channels)
        with torch.random.fork_rng(devices=[]):  # What is drawn after it stays what it was.
            config = head.configure(self._kind, features, given)
            return head.build(trunk, features, self._classes, config).eval()


def latency_limit(
    options: PruneOptions, session: Session, network: Prunable
) -> LatencyLimit | None:
    """Return the limit that was asked for, if one was, with what measures candidates."""
    if options.latency is None:
        return None
    measure = HeadedLatency(network, options.head, options.d1, session.progress)
    return LatencyLimit(options.latency, measure)


def check_smallest(
    limit: LatencyLimit, options: PruneOptions, session: Session, network: Prunable
) -> float:
    """Return the removal fraction of the fastest network there can be, checking that it is in time.

    Raises:
        StrategyError: if even that network is too slow.
    """
    space = Target().search_space(
        network.cost, options.max_rate or LARGEST_MAX_RATE, options.round_to
    )
    fastest = _uniform(limit, network, space, space.max_rate)
    if fastest > limit.limit_ms:
        raise StrategyError(
            f"Even the strategy that removes {space.max_rate:g} of every group takes "
            f"{fastest:.3g} ms here, longer than {limit.limit_ms:g}; give a higher --latency or "
            "--max-rate."
        )
    session.progress.detail(f"The smallest network takes {fastest:.3g} ms for an image")
    return space.max_rate


def flops_within(
    limit: LatencyLimit,
    options: PruneOptions,
    session: Session,
    network: Prunable,
    max_rate: float,
) -> float:
    """Find the FLOPs ratio at which uniform strategies take as long as allowed.

    They are rounded as those of the search will be: odd channel counts take longer.
    """
    space = SearchSpace(network.cost, max_rate, round_to=options.round_to)
    low, high = 0.0, max_rate
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _uniform(limit, network, space, middle) <= limit.limit_ms:
            high = middle
        else:
            low = middle
    ratio = float(network.cost.flops_ratio(space.kept(np.full(space.groups, high))))
    # Rounded, so that a search that goes on after an interruption has the same target.
    ratio = min(max(round(ratio, 2), 0.01), 0.99)
    session.progress.say(f"{limit.limit_ms:g} ms allow about {ratio:g} of the FLOPs here")
    return ratio


def _uniform(limit: LatencyLimit, network: Prunable, space: SearchSpace, fraction: float) -> float:
    """Measure the strategy that removes the same fraction of every group."""
    kept = space.kept(np.full(space.groups, fraction))
    rankings = l1_ranking(network.model, network.dependencies)
    return limit.measure(prune_channels(network.model, network.dependencies, rankings, kept))
