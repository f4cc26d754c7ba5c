"""All stages of a recipe, one after the other."""

from __future__ import annotations

from capsprune.pipeline.analyse import analyse
from capsprune.pipeline.attach_caps import attach_caps
from capsprune.pipeline.attach_linear import attach_linear
from capsprune.pipeline.export import export
from capsprune.pipeline.profile import profile
from capsprune.pipeline.prune import prune
from capsprune.pipeline.session import Session
from capsprune.pipeline.train import train
from capsprune.recipe import Recipe
from capsprune.run import StageName, StageRecord


def run_recipe(recipe: Recipe, session: Session) -> dict[StageName, StageRecord]:
    """Run all stages of a recipe; those that are finished as asked are not done again.

    Returns:
        The records of all stages.

    Raises:
        CapspruneError: as the stages do.
    """
    train(recipe.train, session)
    prune(recipe.prune, session)
    attach_caps(recipe.attach_caps, session)
    if recipe.attach_linear is not None:
        attach_linear(recipe.attach_linear, session)
    export(recipe.export, session)
    if recipe.profile is not None:
        profile(recipe.profile, session)
    if recipe.analyse is not None:
        analyse(recipe.analyse, session)
    return session.run.stages
