"""`run RECIPE --overwrite`: every stage once, however often it is interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capsprune import stages
from capsprune.errors import Interrupted
from capsprune.options import Options
from capsprune.pipeline import recipes
from capsprune.pipeline.session import Session
from capsprune.recipe import Recipe, parse_recipe
from capsprune.records import StageName
from capsprune.run import Run, open_run

RECIPE = parse_recipe({"name": "r", "train": {"model": "resnet18"}, "profile": None}, "")
NETWORK = {"model": "tiny", "data": "digits", "forward_macs": 1, "parameters": 1, "frozen": False}
EXPORTED = {
    **{"path": "model.onnx", "bytes": 1, "opset": 18, "inline": False, "inputs": {}},
    **{"outputs": {}, "batches": [1], "max_abs_difference": 0.0, "top1_agreement": 1.0},
}
STAGES: tuple[StageName, ...] = ("baseline", "pruned", "caps", "onnx")


class Pipeline:
    """Stages that leave an empty folder, and are interrupted where they are told to be."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = run
        self.done: list[StageName] = []
        self.interrupted_at: StageName | None = None
        self.ids = itertools.count()
        for name in stages.STAGES:
            command = replace(stages.STAGES[name].command, work=self.stage(name))
            kind = replace(stages.STAGES[name], command=command)
            monkeypatch.setitem(stages.STAGES._entries, name, kind)

    def stage(self, name: StageName) -> Callable[[Options, Session], None]:
        def work(options: Options, session: Session) -> None:
            run = session.run
            if run.finished(name, {}, None, session.overwrite):
                return
            result = run.begin(name, {}, None) / "result"
            if name == self.interrupted_at:
                raise Interrupted
            result.mkdir()
            self.done.append(name)
            run.commit(
                *(name, result),
                **{"id": str(next(self.ids)), "options": {}, "parent": None},
                **{"seconds": 1.0, "summary": EXPORTED if name == "onnx" else NETWORK},
            )

        return work

    def run(
        self,
        recipe: Recipe = RECIPE,
        *,
        overwrite: bool = True,
        interrupted_at: StageName | None = None,
    ) -> list[StageName]:
        """Run the recipe; gives the stages that were done."""
        self.done, self.interrupted_at = [], interrupted_at
        session = Session(self._run, overwrite=overwrite)
        if interrupted_at is None:
            recipes.run_recipe(recipe, session)
        else:
            with pytest.raises(Interrupted):
                recipes.run_recipe(recipe, session)
        return self.done

    def replace(self, name: StageName) -> None:
        """Do one stage again, as its own command does."""
        self.interrupted_at = None
        self.stage(name)(RECIPE.stages[name], Session(self._run, overwrite=True))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    with open_run(tmp_path, "r", create=True) as run:
        one = Pipeline(run, monkeypatch)
        assert one.run(overwrite=False) == list(STAGES)
        yield one


@pytest.mark.parametrize("first", range(len(STAGES)))
def test_an_interrupted_overwrite_goes_on(pipeline: Pipeline, first: int) -> None:
    assert pipeline.run(interrupted_at=STAGES[first]) == list(STAGES[:first])
    for second in range(first, len(STAGES)):
        assert (
            pipeline.run(interrupted_at=STAGES[second])
            == list(STAGES[second - 1 : second])[: second - first]
        )
    assert pipeline.run() == [STAGES[-1]]
    # It is through, so the next request is a new one.
    assert pipeline.run() == list(STAGES)
    assert pipeline.run(overwrite=False) == []


def test_another_request_begins_anew(pipeline: Pipeline) -> None:
    pipeline.run(interrupted_at="caps")
    other = replace(RECIPE, seed=1)
    assert pipeline.run(other, interrupted_at="pruned") == ["baseline"]
    assert pipeline.run(interrupted_at="caps") == ["baseline", "pruned"]


def test_what_was_replaced_since_is_done_again(pipeline: Pipeline) -> None:
    pipeline.run(interrupted_at="caps")
    pipeline.replace("baseline")
    assert pipeline.run() == ["baseline", "caps", "onnx"]
