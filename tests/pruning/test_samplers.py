import numpy as np
import pytest
import torch

from capsprune.errors import CapspruneError, StrategyError
from capsprune.option_types import help_of
from capsprune.options import PruneOptions, parse_options
from capsprune.pruning.drawing import project
from capsprune.pruning.evaluation import Evaluator
from capsprune.pruning.names import SAMPLERS
from capsprune.pruning.samplers import make_sampler
from capsprune.pruning.search import SearchSettings, search
from capsprune.pruning.target import Target
from capsprune.training.objective import CROSS_ENTROPY

LEARNING = ("tpe", "cmaes", "evolution")


@pytest.fixture(scope="module")
def space(make_prunable):
    return Target(flops=0.5).search_space(make_prunable("mobilenet_v1", 32, "meta").cost)


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
    random, rejecting = (make_sampler(name, space, 5) for name in ("random", "eagleeye"))
    assert all(np.array_equal(random.propose(n), rejecting.propose(n)) for n in range(5))


def test_an_unknown_sampler_is_refused(space):
    with pytest.raises(StrategyError, match="cmaes"):
        make_sampler("cma", space, 0)


@pytest.fixture
def toy():
    """A sampler of another package: the middle of the space, moved onto the target."""

    @SAMPLERS.register("toy", "a toy")
    class Toy:
        def __init__(self, space, seed):
            self.space, self.seed, self.seen = space, seed, []

        def propose(self, index):
            generator = np.random.default_rng((self.seed, index))
            middle = np.full(self.space.groups, self.space.max_rate / 2)
            return project(self.space, middle, generator)

        def observe(self, index, fractions, objective):
            self.seen.append(index)

    yield Toy
    SAMPLERS.unregister("toy")


def test_a_sampler_from_outside_is_an_option_and_runs_a_search(toy, shared_tiny):
    assert parse_options(PruneOptions, {"sampler": "toy"}).sampler == "toy"
    tiny = shared_tiny
    found = [
        search(
            Evaluator(
                tiny.model,
                tiny.dependencies,
                tiny.rankings,
                [tiny.images(8)],
                [(tiny.images(8), torch.arange(8) % 4)],
                CROSS_ENTROPY,
            ),
            Target(flops=0.5).search_space(tiny.cost),
            SearchSettings(3, 0, sampler),
        )
        for sampler in ("toy", toy)
    ]
    first, again = ([c.fractions for c in result.candidates] for result in found)
    assert first == again and len(first) == 3


def test_options_take_the_names_of_the_table():
    for name in SAMPLERS:
        assert parse_options(PruneOptions, {"sampler": name}).sampler == name
        assert name in help_of(PruneOptions.model_fields["sampler"])
    with pytest.raises(CapspruneError, match="Unknown sampler 'cma'; did you mean cmaes"):
        parse_options(PruneOptions, {"sampler": "cma"})
