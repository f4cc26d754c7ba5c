"""A search as a script, for tests that kill it or run it twice at a time.

    python search_script.py DATABASE SHARED OWNER CANDIDATES SAMPLER FACTOR SECONDS

It prints the number and rung of each candidate as it begins (`+ rung index`) and after it is stored
(`- rung index`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from prunables import tiny_prunable

import capsprune.pruning.evaluation as evaluation
from capsprune.pruning.search import SearchSettings, search
from capsprune.pruning.study import Study
from capsprune.pruning.target import Target
from capsprune.training.objective import CROSS_ENTROPY


def main() -> None:
    database, shared, owner, candidates, sampler, factor, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    tiny = tiny_prunable()
    real = evaluation.Evaluator.__call__

    def slowly(self, task):
        print(f"+ {task.calibration} {task.index}", flush=True)
        time.sleep(float(seconds))
        return real(self, task)

    evaluation.Evaluator.__call__ = slowly
    if shared == "shared":
        study = Study(f"sqlite:///{database}", owner=owner or None)
    else:
        study = Study.local(Path(database))
    with study:
        found = search(
            evaluation.Evaluator(
                tiny.model,
                tiny.dependencies,
                tiny.rankings,
                [tiny.images(8, seed) for seed in range(4)],
                [(tiny.images(32, 3), torch.arange(32) % 4)],
                CROSS_ENTROPY,
            ),
            Target(flops=0.5).search_space(tiny.cost),
            SearchSettings(int(candidates), 0, sampler, int(factor)),
            study=study,
            on_candidate=lambda c, done, total: print(f"- {c.rung} {c.index}", flush=True),
        )
    print(f"best {found.best.index} {found.best.score} {found.best.loss}", flush=True)


if __name__ == "__main__":
    main()
