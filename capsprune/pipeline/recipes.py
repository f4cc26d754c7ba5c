"""All stages of a recipe, one after the other."""

from __future__ import annotations

from capsprune.pipeline.session import Session
from capsprune.recipe import Recipe
from capsprune.records import StageName, StageRecord
from capsprune.stages import STAGES


def run_recipe(recipe: Recipe, session: Session) -> dict[StageName, StageRecord]:
    """Run all stages of a recipe; those that are finished as asked are not done again.

    Where they are to be done again, and an attempt to do so was interrupted, it goes on.

    Returns:
        The records of all stages.

    Raises:
        CapspruneError: as the stages do.
    """
    run, overwrite = session.run, session.overwrite
    request = {"recipe": recipe.to_dict(), "precision": session.precision}
    done = (run.read_overwritten(request) or {}) if overwrite else {}
    try:
        for name, options in recipe.stages.items():
            record = run.stages.get(name)
            session.overwrite = overwrite and (record is None or done.get(name) != record.id)
            STAGES[name].function(options, session)
            if overwrite:
                done[name] = run.stages[name].id
                run.note_overwritten(request, done)
    finally:
        session.overwrite = overwrite
    if overwrite:
        run.forget_overwritten()
    return run.stages
