"""The names of samplers and criteria, and nothing that takes long to import."""

from __future__ import annotations

from typing import Literal, get_args

SamplerName = Literal["eagleeye", "random", "tpe", "cmaes", "evolution"]
CriterionName = Literal["l1", "l2", "bn-scale", "taylor", "random"]

SAMPLERS: tuple[str, ...] = get_args(SamplerName)
