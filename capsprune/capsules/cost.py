"""What a capsule head costs, from its sizes alone."""

from __future__ import annotations


def routing_macs(capsules: int, classes: int, d1: int, d2: int, iterations: int) -> int:
    """Multiply-accumulates of OutputCaps for one image, counted as in equations (1), (2) and (4).

    Votes once, their weighted sum every iteration, the agreement in all but the last. A single
    iteration weights all votes alike, so that one matrix product gives their sum, and no more.

    Args:
        capsules: I.
        classes: J.
        d1: values in a primary capsule.
        d2: values in an output capsule.
        iterations: routing iterations.
    """
    votes = classes * capsules * d1 * d2
    if iterations == 1:
        return votes
    return votes + (2 * iterations - 1) * classes * capsules * d2
