"""What is said of channel counts that save FLOPs and little time."""

from __future__ import annotations

from collections.abc import Mapping

from capsprune.option_types import DEFAULT_ROUND_TO

#: As `capsprune.pruning.channels.layer_channels` gives them.
Channels = Mapping[str, Mapping[str, int]]


def odd_counts(pruned: Channels, unpruned: Channels) -> str | None:
    """Say that layers were cut to channel counts that cost latency, if any were.

    Args:
        pruned: channel counts of a pruned network, or of its trunk.
        unpruned: of the network that it was made from, or of its trunk.
    """
    cut = [
        counts["out"]
        for name, counts in pruned.items()
        # Norms have no inputs, and follow their convolutions.
        if "in" in counts and name in unpruned and counts["out"] < unpruned[name]["out"]
    ]
    odd = sum(count % DEFAULT_ROUND_TO != 0 for count in cut)
    if not odd:
        return None
    return (
        f"{odd} of the {len(cut)} layers that lost channels keep no multiple of "
        f"{DEFAULT_ROUND_TO}, which often takes longer at the same FLOPs; "
        f"'capsprune prune --round-to {DEFAULT_ROUND_TO}' keeps multiples"
    )
