"""How long pruned networks take: what `--latency` limits."""

from __future__ import annotations

from torch import Tensor, nn

from capsprune.errors import StrategyError
from capsprune.options import SearchOptions
from capsprune.pipeline.prunable import Prunable
from capsprune.pipeline.session import Session
from capsprune.progress import Progress
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.criteria import l1_ranking
from capsprune.pruning.evaluation import LatencyLimit
from capsprune.pruning.space import SearchSpace

#: Steps of the search for the FLOPs that a latency allows: it is found to within 1 %.
_STEPS = 6


class PrunedLatency:
    """Measures pruned networks, a backbone with the untrained head that it says."""

    def __init__(self, network: Prunable, progress: Progress) -> None:
        """Measure nothing yet.

        Args:
            network: the unpruned one.
            progress: told, once, where measuring takes longer than it could.
        """
        from capsprune.runtime.latency import LatencyMeter  # which takes onnx to import

        self._network = network
        self._meter = LatencyMeter(
            network.image_size, reference=network.as_measured(network.model), say=progress.say
        )

    def __call__(self, pruned: nn.Module) -> float:
        """Return the milliseconds that a pruned network takes for one image.

        Raises:
            ExportError: if it cannot be exported.
        """
        return self._meter(self._network.as_measured(pruned))


def latency_limit(
    options: SearchOptions, session: Session, network: Prunable
) -> LatencyLimit | None:
    """Return the limit that was asked for, if one was, with what measures candidates."""
    if options.latency is None:
        return None
    return LatencyLimit(options.latency, PrunedLatency(network, session.progress))


def check_smallest(
    limit: LatencyLimit, options: SearchOptions, session: Session, network: Prunable
) -> SearchSpace:
    """Return the space of all strategies, checking that the smallest network is in time.

    Raises:
        StrategyError: if even that network is too slow.
    """
    space = network.whole_space(options.max_rate, options.round_to)
    fastest = _uniform(limit, network, _rankings(network), space, 1.0)
    if fastest > limit.limit_ms:
        raise StrategyError(
            f"Even the strategy that removes {space.max_rate:g} of every group takes "
            f"{fastest:.3g} ms here, longer than {limit.limit_ms:g}; give a higher --latency or "
            "--max-rate."
        )
    session.progress.detail(f"The smallest network takes {fastest:.3g} ms for an image")
    return space


def flops_within(
    limit: LatencyLimit, session: Session, network: Prunable, space: SearchSpace
) -> float:
    """Find the FLOPs ratio at which uniform strategies take as long as allowed.

    They are rounded as those of the search will be: odd channel counts take longer.

    Args:
        limit: what is allowed.
        session: of the command.
        network: the unpruned one.
        space: of all strategies.
    """
    rankings = _rankings(network)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _uniform(limit, network, rankings, space, middle) <= limit.limit_ms:
            high = middle
        else:
            low = middle
    ratio = network.flops_ratio(space.kept(space.max_rates * high))
    # Rounded, so that a search that goes on after an interruption has the same target.
    ratio = min(max(round(ratio, 2), 0.01), 0.99)
    session.progress.say(f"{limit.limit_ms:g} ms allow about {ratio:g} of the FLOPs here")
    return ratio


def _rankings(network: Prunable) -> list[Tensor]:
    """Return rankings of any kind: which channels go hardly changes the time."""
    return l1_ranking(network.model, network.dependencies)


def _uniform(
    limit: LatencyLimit,
    network: Prunable,
    rankings: list[Tensor],
    space: SearchSpace,
    part: float,
) -> float:
    """Measure the strategy that removes the same part of what may go of every group."""
    kept = space.kept(space.max_rates * part)
    return limit.measure(prune_channels(network.model, network.dependencies, rankings, kept))
