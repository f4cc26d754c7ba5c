"""The sizes asked for, as one value."""

import pytest

from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pruning.target import Target


def test_a_target_is_read_off_options_of_the_same_names():
    target = Target.of(PruneOptions(flops=0.4, latency=2.5))
    assert target == Target(flops=0.4, latency=2.5)
    assert target.given == {"flops": 0.4, "latency": 2.5}


def test_nothing_asked_for_is_half_of_the_flops():
    assert Target().complete() == Target(flops=0.5)
    assert Target(params=0.3).complete() == Target(params=0.3)
    assert Target(latency=1).complete() == Target(latency=1)


@pytest.mark.parametrize("beside", [{"params": 0.5}, {"primary_caps": 9}, {"latency": 1.0}])
def test_what_removes_nothing_stands_alone(beside):
    assert Target(flops=1).complete().removes_nothing
    with pytest.raises(StrategyError, match=r"--flops 1 removes nothing; leave out --\S+, or"):
        Target(flops=1, **beside).complete()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (Target(flops=0.5), "leave out --flops, or --strategy"),
        (Target(flops=0.5, params=0.5), "leave out --flops and --params, or --strategy"),
        (
            Target(flops=0.5, primary_caps=3, latency=1),
            "leave out --flops, --primary-caps and --latency, or --strategy",
        ),
    ],
)
def test_sizes_beside_what_has_its_own_are_named(target, named):
    Target().refuse_any("--strategy has its size already", "--strategy")
    with pytest.raises(StrategyError, match=named):
        target.refuse_any("--strategy has its size already", "--strategy")


def test_a_latency_alone_must_be_measured():
    assert not Target(latency=1).is_computed
    assert Target(latency=1, params=0.5).is_computed


def test_the_space_has_the_words_of_its_target(make_prunable):
    cost = make_prunable("resnet18", 32, "meta").cost
    space = Target(flops=0.5, params=0.4).search_space(cost)
    assert space.describe() == "0.5 of the FLOPs, 0.4 of the parameters within 0.005"
    assert Target(latency=3).search_space(cost).describe() == "none"
