"""The smallest network within a tolerance, of toy networks whose score is a function of counts."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.pruning.bisection import Bisection
from capsprune.pruning.space import SearchSpace

KINDS = ("channels", "channels", "capsules", "rank", "iterations")
UNITS = (64, 32, 89, 40, 3)


def toy_space(units=UNITS, kinds=KINDS, max_rate=0.9):
    """A space without costs, which a bisection has no use for."""
    widths = [0 if kind == "iterations" else 1 for kind in kinds]
    cost = SimpleNamespace(channels=np.array(units), widths=np.array(widths))
    return SearchSpace(cost, max_rate, kinds=kinds)


def run(score, threshold, space=None, seen=None):
    """Bisect; the score is a function of the units kept."""
    space = space or toy_space()
    bisection = Bisection(space, space.kinds, threshold)
    tried = []
    while not bisection.finished:
        index = len(tried)
        proposed = bisection.propose(index)
        kept = tuple(int(n) for n in space.kept(proposed))
        if seen is not None and index < len(seen):
            assert seen[index] == kept
        tried.append(kept)
        bisection.observe(index, proposed, score(kept))
    return bisection, tried


@settings(max_examples=60)
@given(
    capsules=st.integers(1, 89),
    rank=st.integers(1, 40),
    iterations=st.integers(1, 3),
    stem=st.integers(7, 64),
)
def test_the_least_of_each_size_is_found_exactly(capsules, rank, iterations, stem):
    def score(kept):
        enough = kept[2] >= capsules and kept[3] >= rank and kept[4] >= iterations
        return 0.9 if enough and kept[0] >= stem else 0.5

    bisection, tried = run(score, 0.895)
    kept = toy_space().kept(bisection.best)
    assert tuple(kept[2:]) == (capsules, rank, iterations)
    # All channels by one fraction, in 32 steps of 0.9.
    assert stem <= kept[0] <= stem + 3
    assert kept[1] == pytest.approx(kept[0] / 2, abs=1)
    assert len(tried) <= bisection.most_candidates
    assert len(set(tried)) == len(tried)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1))
def test_whatever_the_scores_what_comes_out_was_tried_and_does(seed, threshold):
    def score(kept):
        return float(np.random.default_rng((seed, *kept)).uniform())

    bisection, tried = run(score, threshold)
    if bisection.best_index is None:
        assert not bisection.best.any()
    else:
        kept = tried[bisection.best_index]
        assert kept == tuple(toy_space().kept(bisection.best))
        assert score(kept) >= threshold


def test_where_everything_does_the_smallest_network_takes_one_candidate_for_each_size():
    bisection, tried = run(lambda kept: 1.0, 0.9)
    assert tried == [
        (64, 32, 1, 40, 3),
        (64, 32, 1, 1, 3),
        (64, 32, 1, 1, 1),
        (7, 4, 1, 1, 1),
    ]
    assert bisection.best_index == 3


def test_where_nothing_does_the_network_stays_as_it_is():
    bisection, tried = run(lambda kept: 0.0, 0.9)
    assert bisection.best_index is None and not bisection.best.any()
    assert len(tried) <= bisection.most_candidates


def test_a_score_at_the_threshold_does():
    space = toy_space((4,), ("capsules",))
    bisection, _ = run(lambda kept: 0.992 - 0.005, 0.987, space)
    assert space.kept(bisection.best) == 1


def test_a_bisection_that_is_shown_the_same_again_goes_on_alike():
    def score(kept):
        return 1.0 if kept[2] >= 5 and kept[3] >= 17 else 0.0

    _, tried = run(score, 0.9)
    for shown in range(len(tried)):
        assert run(score, 0.9, seen=tried[:shown])[1] == tried


def test_what_the_network_has_none_of_is_left_out():
    space = toy_space((16,), ("channels",))
    bisection, _ = run(lambda kept: float(kept[0] >= 9), 1.0, space)
    assert space.kept(bisection.best) == 9
    nothing = Bisection(toy_space((1, 1), ("capsules", "rank")), ("capsules", "rank"), 0.5)
    assert nothing.finished and nothing.most_candidates == 0
    with pytest.raises(ValueError, match="finished"):
        nothing.propose(0)


def test_groups_that_stay_whole_are_not_bisected():
    space = SearchSpace(toy_space().cost, 0.9, kinds=KINDS, whole=frozenset({0, 1, 3}))
    _, tried = run(lambda kept: 1.0, 0.5, space)
    assert tried[-1] == (64, 32, 1, 40, 1) and len(tried) == 2
