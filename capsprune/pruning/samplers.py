"""Samplers: each proposes strategies on the target, and some learn from the scores.

`random` and `eagleeye` know nothing of what came before. The others are Optuna's. They propose
anywhere between 0 and the largest removal fraction of each group; the proposal is projected onto
the target (`project`), and what they learn from is the strategy that was really scored, not the one
that they proposed: an estimator of densities (TPE) or a covariance (CMA-ES) would otherwise be
fitted to points that were never looked at. CMA-ES calls this the injection of solutions; it holds
as long as the projection is a small step, which it becomes once its mean lies near the target.

Every proposal follows from the seed, the candidate's number, and the candidates that are finished,
in the order in which they finished. Nothing else is remembered: a search that goes on shows its
sampler the stored candidates again and is where it was.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from capsprune.pruning.drawing import project, propose, reject
from capsprune.pruning.names import SAMPLERS, SamplerMaker
from capsprune.pruning.space import Fractions, SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

#: Candidates of a generation of `evolution`: small, as a search tries hundreds, not 10,000s.
_POPULATION = 20
#: Candidates that TPE draws at random before it learns.
_STARTUP = 10


class Sampler(Protocol):
    """Proposes strategies."""

    def propose(self, index: int) -> Fractions:
        """Propose a strategy on the target for the candidate of this number, [G]."""

    def observe(self, index: int, fractions: Fractions, objective: float) -> None:
        """Learn how a strategy did.

        Args:
            index: number of the candidate.
            fractions: what was scored, [G].
            objective: the larger the better.
        """


class RejectionSampler:
    """EagleEye's: uniform draws, rejected until one lies on the target."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        """Make one for a space."""
        self._space, self._seed = space, seed

    def propose(self, index: int) -> Fractions:
        """Draw by rejection; raises StrategyError if that does not lead to the target."""
        return reject(self._space, np.random.default_rng((self._seed, index)))

    def observe(self, index: int, fractions: Fractions, objective: float) -> None:
        """Learn nothing."""


class RandomSampler(RejectionSampler):
    """EagleEye's distribution, or as near to it as a target allows that rejection misses."""

    def propose(self, index: int) -> Fractions:
        """Draw from the space."""
        return propose(self._space, np.random.default_rng((self._seed, index)))


class OptunaSampler(ABC):
    """A sampler of Optuna, in a study in memory that holds what was scored."""

    #: Whether it counts generations as it proposes, so that it must have proposed what it is shown.
    counts_generations: ClassVar[bool] = True

    def __init__(self, space: SearchSpace, seed: int) -> None:
        """Make one.

        Args:
            space: what proposals are projected onto.
            seed: of all proposals.
        """
        optuna = quiet_optuna()
        self._space, self._seed = space, seed
        self._ranges = {
            _parameter(group): optuna.distributions.FloatDistribution(0.0, float(rate))
            for group, rate in enumerate(space.max_rates)
            if rate > 0
        }
        self._study = optuna.create_study(
            direction="maximize", sampler=self._seeded(0), pruner=optuna.pruners.NopPruner()
        )
        self._asked: dict[int, Trial] = {}

    @abstractmethod
    def make(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler with a seed."""

    def propose(self, index: int) -> Fractions:
        """Ask Optuna, and move what it says onto the target."""
        trial = self._ask(index)
        drawn = np.array(
            [trial.params.get(_parameter(group), 0.0) for group in range(self._space.groups)]
        )
        return project(self._space, drawn, np.random.default_rng((self._seed, index)))

    def observe(self, index: int, fractions: Fractions, objective: float) -> None:
        """Put what was scored in the place of what was proposed."""
        optuna = quiet_optuna()
        asked = self._asked.pop(index, None)
        if asked is None and self.counts_generations:
            # A candidate of another process, or of before an interruption, was never asked for
            # here.
            asked = self._ask(index, keep=False)
        notes: dict[str, Any] = {}
        if asked is not None:
            # What the sampler noted with its proposal stays valid: its generation and state.
            notes = self._study.get_trials(deepcopy=False)[asked.number].system_attrs
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        clipped = np.clip(fractions, 0.0, self._space.max_rates)
        self._study.add_trial(
            optuna.trial.create_trial(
                params={
                    name: float(fraction)
                    for group, fraction in enumerate(clipped)
                    if (name := _parameter(group)) in self._ranges
                },
                distributions=self._ranges,
                value=objective,
                system_attrs=notes,
            )
        )

    def _ask(self, index: int, keep: bool = True) -> Trial:
        self._study.sampler = self._seeded(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(dict(self._ranges))
        if keep:
            self._asked[index] = trial
        return trial

    def _seeded(self, index: int) -> BaseSampler:
        """Return the sampler of one proposal: its randomness follows from the seed and number."""
        seed = int(np.random.SeedSequence((self._seed, index)).generate_state(1)[0]) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.make(seed)


class TpeSampler(OptunaSampler):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""

    counts_generations = False

    def make(self, seed: int) -> BaseSampler:
        """Return one that models the groups jointly."""
        return quiet_optuna().samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=_STARTUP
        )


class CmaEsSampler(OptunaSampler):
    """Covariance matrix adaptation (Hansen and Ostermeier, 2001)."""

    def make(self, seed: int) -> BaseSampler:
        """Return one with Optuna's defaults."""
        return quiet_optuna().samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


class EvolutionSampler(OptunaSampler):
    """A genetic algorithm (NSGA-II with one objective)."""

    def make(self, seed: int) -> BaseSampler:
        """Return one with small generations."""
        return quiet_optuna().samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)


def make_sampler(sampler: str | SamplerMaker, space: SearchSpace, seed: int) -> Sampler:
    """Make a sampler.

    Args:
        sampler: one of `SAMPLERS` by name, or what makes one of a space and a seed.
        space: where proposals must lie.
        seed: of all proposals.

    Raises:
        StrategyError: if there is no such sampler.
    """
    maker = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    return maker(space, seed)


def quiet_optuna() -> Any:
    """Import Optuna, which is too slow to load for what needs it not, and silence its log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _parameter(group: int) -> str:
    return f"group{group:03d}"
