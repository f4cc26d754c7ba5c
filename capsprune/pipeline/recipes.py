"""All stages of a recipe, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capsprune.options import Options
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

#: In the order in which they are done.
_STAGES: dict[StageName, tuple[Callable[[Any, Session], object], str]] = {
    "baseline": (train, "train"),
    "pruned": (prune, "prune"),
    "caps": (attach_caps, "attach_caps"),
    "linear": (attach_linear, "attach_linear"),
    "onnx": (export, "export"),
    "profile": (profile, "profile"),
    "analysis": (analyse, "analyse"),
}


def run_recipe(recipe: Recipe, session: Session) -> dict[StageName, StageRecord]:
    """Run all stages of a recipe; those that are finished as asked are not done again.

    Where they are to be done again, and an attempt to do so was interrupted, it goes on.

    Returns:
        The records of all stages.

    Raises:
        CapspruneError: as the stages do.
    """
    run, overwrite = session.run, session.overwrite
    request = {"recipe": recipe.model_dump(mode="json"), "precision": session.precision}
    done = (run.read_overwritten(request) or {}) if overwrite else {}
    try:
        for name, (stage, field) in _STAGES.items():
            options: Options | None = getattr(recipe, field)
            if options is None:
                continue
            record = run.stages.get(name)
            session.overwrite = overwrite and (record is None or done.get(name) != record.id)
            stage(options, session)
            if overwrite:
                done[name] = run.stages[name].id
                run.note_overwritten(request, done)
    finally:
        session.overwrite = overwrite
    if overwrite:
        run.forget_overwritten()
    return run.stages
