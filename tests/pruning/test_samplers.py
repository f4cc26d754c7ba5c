import typing

import numpy as np
import pytest

from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pruning.names import SAMPLERS
from capsprune.pruning.samplers import make_sampler
from capsprune.pruning.space import SearchSpace

LEARNING = ("tpe", "cmaes", "evolution")


@pytest.fixture(scope="module")
def space(make_prunable):
    return SearchSpace.around(make_prunable("mobilenet_v1", 32, "meta").cost, 0.5)


def objective(fractions):
    """What a sampler could learn: some groups should lose little, others much."""
    wanted = np.linspace(0.1, 0.6, len(fractions))
    return 1 - float(np.abs(fractions - wanted).mean())


def run(sampler, count, start=0):
    drawn = []
    for index in range(start, start + count):
        fractions = sampler.propose(index)
        sampler.observe(index, fractions, objective(fractions))
        drawn.append(fractions)
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_proposal_meets_the_target(space, name):
    assert all(space.meets(fractions) for fractions in run(make_sampler(name, space, 0), 40))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_decides(space, name):
    first, again, other = (run(make_sampler(name, space, seed), 30) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_goes_on_from_what_it_is_shown(space, name):
    whole = run(make_sampler(name, space, 3), 50)
    again = make_sampler(name, space, 3)
    for index, fractions in enumerate(whole[:33]):
        again.observe(index, fractions, objective(fractions))
    assert np.array_equal(run(again, 17, start=33), whole[33:])


@pytest.mark.parametrize("name", LEARNING)
def test_learning_samplers_beat_random_ones(space, name):
    def mean_of_late(name):
        return np.mean(
            [
                np.mean([objective(f) for f in run(make_sampler(name, space, seed), 150)[-30:]])
                for seed in range(2)
            ]
        )

    assert mean_of_late(name) > mean_of_late("random") + 0.01


@pytest.mark.parametrize("name", LEARNING)
def test_samplers_learn_from_what_was_scored(space, name):
    sampler = make_sampler(name, space, 0)
    drawn = run(sampler, 12)
    trials = [trial for trial in sampler._study.trials if trial.values]
    assert np.allclose([list(trial.params.values()) for trial in trials], drawn)


def test_random_draws_as_eagleeye_does(space):
    random, blind = (make_sampler(name, space, 5) for name in ("random", "eagleeye"))
    assert all(np.array_equal(random.propose(n), blind.propose(n)) for n in range(5))


def test_an_unknown_sampler_is_refused(space):
    with pytest.raises(StrategyError, match="cmaes"):
        make_sampler("cma", space, 0)


def test_the_command_line_knows_the_same_names():
    annotation = PruneOptions.model_fields["sampler"].annotation
    assert typing.get_args(annotation) == SAMPLERS
