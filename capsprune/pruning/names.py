"""The names of samplers and criteria, and nothing that takes long to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from capsprune.errors import StrategyError
from capsprune.tables import Table

if TYPE_CHECKING:
    from capsprune.pruning.criteria import CapsuleCriterion, Criterion
    from capsprune.pruning.samplers import Sampler
    from capsprune.pruning.space import SearchSpace

#: What ranks the channels of a group, by the name that `--criterion` takes.
CRITERIA: Table[Criterion] = Table(
    "criterion",
    {
        "l1": ("capsprune.pruning.criteria:l1", "sum of magnitudes of the filter"),
        "l2": ("capsprune.pruning.criteria:l2", "Euclidean norm of the filter"),
        "bn-scale": ("capsprune.pruning.criteria:bn_scale", "scale of the batch norm"),
        "taylor": ("capsprune.pruning.criteria:taylor", "first-order change of the loss"),
        "random": ("capsprune.pruning.criteria:random", "no criterion, to compare with"),
    },
    error=StrategyError,
)

#: What ranks the primary capsules, by the name that `--capsule-criterion` takes.
CAPSULE_CRITERIA: Table[CapsuleCriterion] = Table(
    "capsule criterion",
    {
        name: (f"capsprune.pruning.capsule_criteria:{name.replace('-', '_')}", summary)
        for name, summary in (
            ("coupling", "greatest coupling coefficient"),
            ("contribution", "share in the true class's capsule"),
            ("contribution-variance", "how that share varies from image to image"),
            ("length-std", "how the capsule's length varies from image to image"),
            ("taylor", "first-order change of the loss"),
            ("fisher", "second-order change of the loss"),
            ("weight-norm", "norm of the transformation matrices"),
            ("least-squares", "greedy selection of those that reproduce the class capsules"),
            ("random", "no criterion, to compare with"),
        )
    },
    error=StrategyError,
)
#: The one that measures best: see `tools/bench_capsules.py`.
DEFAULT_CAPSULE_CRITERION = "least-squares"

#: Makes a sampler for a space and a seed: a class will do.
SamplerMaker = Callable[["SearchSpace", int], "Sampler"]

#: Who proposes strategies, by the name that `--sampler` takes.
SAMPLERS: Table[SamplerMaker] = Table(
    "sampler",
    {
        "eagleeye": (
            "capsprune.pruning.samplers:RejectionSampler",
            "rejection sampling, as published",
        ),
        "random": (
            "capsprune.pruning.samplers:RandomSampler",
            "rejection sampling, and projection onto the target where it finds nothing",
        ),
        "tpe": (
            "capsprune.pruning.samplers:TpeSampler",
            "tree-structured Parzen estimator, learns from scores",
        ),
        "cmaes": ("capsprune.pruning.samplers:CmaEsSampler", "CMA-ES, learns from scores"),
        "evolution": (
            "capsprune.pruning.samplers:EvolutionSampler",
            "genetic algorithm, learns from scores",
        ),
    },
    error=StrategyError,
)
