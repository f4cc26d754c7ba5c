import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.errors import StrategyError
from capsprune.pruning.drawing import draw, project, propose, reject
from capsprune.pruning.limits import Counted
from capsprune.pruning.space import SearchSpace
from capsprune.pruning.target import Target


@pytest.fixture(scope="module")
def cost(make_prunable):
    return make_prunable("resnet18", 32, "meta").cost


def around(cost, flops=None, max_rate=None, round_to=1, *, bottleneck=None, **sizes):
    return Target(flops=flops, **sizes).search_space(
        cost, max_rate, round_to, {"primary_caps": bottleneck} if bottleneck else None
    )


def last_group(cost, d1=8, fixed=0):
    """The bottleneck of a network whose last group is the trunk's output."""
    per_channel = np.zeros(len(cost.channels), dtype=np.int64)
    per_channel[-1] = 1
    return Counted(per_channel, fixed, d1)


@settings(max_examples=60)
@given(
    target=st.floats(0.08, 0.99),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["resnet18", "mobilenet_v1", "mobilenet_v2"]),
)
def test_proposals_lie_on_the_target(make_prunable, target, seed, name):
    cost = make_prunable(name, 32, "meta").cost
    space = around(cost, target)
    fractions = propose(space, np.random.default_rng(seed))
    assert fractions.shape == cost.channels.shape
    assert (fractions >= 0).all() and (fractions <= space.max_rate).all()
    assert abs(float(cost.flops_ratio(space.kept(fractions))) - target) <= 0.005
    assert space.meets(fractions)


@settings(max_examples=60)
@given(
    target=st.floats(0.15, 0.95),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["resnet18", "mobilenet_v1", "mobilenet_v2"]),
)
def test_multiples_of_8_lie_on_the_target_too(make_prunable, target, seed, name):
    cost = make_prunable(name, 32, "meta").cost
    space = around(cost, target, round_to=8)
    kept = space.kept(propose(space, np.random.default_rng(seed)))
    assert abs(float(cost.flops_ratio(kept)) - target) <= 0.005
    assert all(n * w % 8 == 0 for n, w in zip(kept, cost.widths, strict=True))


@settings(max_examples=60)
@given(
    target=st.floats(0.08, 0.99),
    seed=st.integers(0, 10_000),
    scale=st.floats(-0.5, 2.0),
    name=st.sampled_from(["resnet18", "mobilenet_v2"]),
)
def test_anything_is_projected_onto_the_target(make_prunable, target, seed, scale, name):
    cost = make_prunable(name, 32, "meta").cost
    space = around(cost, target)
    generator = np.random.default_rng(seed)
    moved = project(space, scale * draw(space, generator, 1)[0], generator)
    assert (moved >= 0).all() and (moved <= space.max_rate).all()
    assert space.meets(moved)


def test_projection_keeps_what_meets_the_target_and_the_order_of_the_rest(cost):
    space = around(cost, 0.5)
    generator = np.random.default_rng(0)
    good = propose(space, generator)
    assert np.array_equal(project(space, good, generator), good)
    for _ in range(20):
        drawn = draw(space, generator, 1)[0]
        moved = project(space, drawn, generator)
        assert np.array_equal(np.argsort(moved), np.argsort(drawn))


@settings(max_examples=20)
@given(target=st.floats(0.15, 0.95), seed=st.integers(0, 10_000))
def test_rounded_proposals_keep_multiples_of_eight(cost, target, seed):
    space = around(cost, target, round_to=8)
    kept = space.kept(propose(space, np.random.default_rng(seed)))
    assert (kept % 8 == 0).all() and (kept > 0).all()
    assert abs(float(cost.flops_ratio(kept)) - target) <= 0.005


@pytest.mark.parametrize("max_rate", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("above", [-0.004, 0.0, 0.001, 0.02])
def test_a_space_that_is_accepted_has_proposals(cost, max_rate, above):
    lowest = float(cost.flops_ratio(SearchSpace(cost, max_rate).least()))
    space = around(cost, lowest + above, max_rate)
    fractions = propose(space, np.random.default_rng(0))
    assert abs(float(cost.flops_ratio(space.kept(fractions))) - lowest - above) <= 0.005
    assert (fractions <= max_rate).all()


def test_proposals_differ_and_follow_from_the_generator(cost):
    space = around(cost, 0.5)
    first, again, other = (propose(space, np.random.default_rng((0, n))) for n in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.ptp(first) > 0.1  # groups are pruned unevenly


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v1"])
@pytest.mark.parametrize("target", [0.25, 0.5])
def test_proposals_have_eagleeyes_distribution(make_prunable, name, target):
    """Against draws that were rejected one by one, group by group."""
    cost = make_prunable(name, 32, "meta").cost
    space = around(cost, target)
    generator = np.random.default_rng(7)
    drawn = generator.uniform(0, space.max_rate, (100_000, len(cost.channels)))
    ratios = cost.flops_ratio(
        np.maximum(1, cost.channels - np.floor(drawn * cost.channels)).astype(np.int64)
    )
    accepted = drawn[np.abs(ratios - target) <= 0.005]
    ours = np.stack([propose(space, np.random.default_rng((0, n))) for n in range(800)])
    assert len(accepted) > 300
    error = np.sqrt(accepted.var(axis=0) / len(accepted) + ours.var(axis=0) / len(ours))
    assert (np.abs(accepted.mean(axis=0) - ours.mean(axis=0)) / error).max() < 4.5
    assert np.allclose(ours.std(axis=0) / accepted.std(axis=0), 1, atol=0.2)


def test_moved_draws_lie_near_eagleeyes_distribution(make_prunable):
    """Where rejection sampling misses: means within a seventh of the range of each group."""
    cost = make_prunable("resnet50", 32, "meta").cost
    space = around(cost, 0.5)
    generator = np.random.default_rng(7)
    draws = draw(space, generator, 40_000)
    accepted = draws[space.meets(draws)]
    moved = np.stack(
        [project(space, row, generator) for row in draw(space, generator, 500)],
    )
    assert np.abs(accepted.mean(axis=0) - moved.mean(axis=0)).max() < space.max_rate / 7
    assert 0.7 < (moved.std(axis=0) / accepted.std(axis=0)).mean() < 1


def test_rejection_sampling_says_when_it_is_hopeless(cost):
    space = around(cost, 0.5)
    assert space.meets(reject(space, np.random.default_rng(0)))
    with pytest.raises(StrategyError, match=r"0\.95 of the FLOPs.*--sampler random"):
        reject(around(cost, 0.95, 0.8), np.random.default_rng(0), draws=5000)


@pytest.mark.parametrize("max_rate", [0.2, 0.5])
def test_an_unreachable_target_names_the_lowest(cost, max_rate):
    lowest = float(cost.flops_ratio(SearchSpace(cost, max_rate).least()))
    all_at_most = cost.channels - np.floor(max_rate * cost.channels).astype(int)
    assert lowest == float(cost.flops_ratio(all_at_most))
    with pytest.raises(StrategyError, match=rf"least is {lowest:.3f}.*--max-rate or --flops"):
        around(cost, 0.05, max_rate)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 1.5, math.nan])
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_target_outside_0_and_1_is_refused(cost, kind, target):
    with pytest.raises(StrategyError, match="not between 0 and 1"):
        around(cost, **{kind: target})


@pytest.mark.parametrize("max_rate", [0.0, 1.0, -0.5])
def test_a_largest_fraction_outside_0_and_1_is_refused(cost, max_rate):
    with pytest.raises(StrategyError, match="--max-rate"):
        around(cost, 0.5, max_rate)


def test_largest_fractions_are_the_published_ones(cost):
    rates = [around(cost, target).max_rate for target in (0.25, 0.5, 0.75)]
    assert rates == pytest.approx([0.8, 0.7, 0.4])


@settings(max_examples=30)
@given(
    flops=st.floats(0.2, 0.9),
    params=st.floats(0.2, 0.9),
    seed=st.integers(0, 1000),
    round_to=st.sampled_from([1, 4]),
)
def test_two_limits_are_kept_and_one_of_them_is_met(cost, flops, params, seed, round_to):
    space = around(cost, flops, params=params, round_to=round_to)
    kept = space.kept(propose(space, np.random.default_rng(seed)))
    left = cost.parameters(kept) / cost.parameters(cost.channels)
    over = max(float(cost.flops_ratio(kept)) - flops, float(left) - params)
    assert abs(over) <= 0.005


def test_parameters_alone(cost):
    space = around(cost, params=0.4)
    for seed in range(5):
        kept = space.kept(propose(space, np.random.default_rng(seed)))
        assert abs(cost.parameters(kept) / cost.parameters(cost.channels) - 0.4) <= 0.005


@settings(max_examples=30)
@given(
    capsules=st.integers(20, 60),
    flops=st.sampled_from([None, 0.4, 0.5]),
    round_to=st.sampled_from([1, 8]),
    seed=st.integers(0, 1000),
)
def test_primary_capsules_are_met_exactly(cost, capsules, flops, round_to, seed):
    space = around(
        cost, flops, round_to=round_to, primary_caps=capsules, bottleneck=last_group(cost)
    )
    kept = space.kept(propose(space, np.random.default_rng(seed)))
    assert kept[-1] // 8 == capsules
    assert (kept % round_to == 0).all()
    if flops is not None:
        assert abs(float(cost.flops_ratio(kept)) - flops) <= 0.005


def test_primary_capsules_of_several_groups(cost):
    bottleneck = Counted((np.arange(len(cost.channels)) % 2).astype(np.int64), 7, 6)
    space = around(cost, 0.5, primary_caps=150, bottleneck=bottleneck)
    for seed in range(5):
        kept = space.kept(propose(space, np.random.default_rng(seed)))
        assert (int(kept[1::2].sum()) + 7) // 6 == 150
        assert abs(float(cost.flops_ratio(kept)) - 0.5) <= 0.005


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"primary_caps": 65}, "64 primary capsules of 8 values, fewer than 65"),
        ({"primary_caps": 2}, "the least is 3; give a higher --max-rate or --primary-caps"),
        ({"primary_caps": 30, "max_rate": 0.4}, "the least is 38"),
        ({"primary_caps": 30, "flops": 0.95}, "With 30 primary capsules not more than"),
        ({"primary_caps": 60, "flops": 0.25, "max_rate": 0.5}, "with 60 primary capsules.*least"),
        ({"primary_caps": 41, "round_to": 16}, "No channel counts in multiples of 16"),
        ({"params": 0.1, "max_rate": 0.4}, "of the parameters: the least is .*--params"),
        ({"flops": 0.1, "round_to": 32}, "the least is .*, or a lower --round-to"),
        ({"flops": 0.5, "params": 0.1, "max_rate": 0.5}, "0.1 of the parameters"),
    ],
)
def test_impossible_combinations_are_refused(cost, given_, message):
    with pytest.raises(StrategyError, match=message):
        around(cost, **given_, bottleneck=last_group(cost))


def test_pricing_is_fast_enough_for_rejection_sampling(make_prunable):
    """10,000 ResNet-50 strategies a second at the very least; it is some 300,000."""
    import time

    space = around(make_prunable("resnet50", 32, "meta").cost, 0.5)
    draws = draw(space, np.random.default_rng(0), 10_000)
    started = time.perf_counter()
    space.meets(draws)
    assert time.perf_counter() - started < 1
