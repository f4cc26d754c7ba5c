"""Printing what each command of the table came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.stages import STAGES
from capsprune.terminal import stages

if TYPE_CHECKING:
    from capsprune.pipeline.commands import Outcome


def show_checkpoint(outcome: Outcome, verbose: bool) -> None:
    """Print what a stage came to that leaves a checkpoint."""
    assert outcome.command.stage is not None
    assert outcome.seconds is not None
    title = STAGES[outcome.command.stage].title
    stages.print_checkpoint(title, outcome.summary, str(outcome.path), outcome.seconds)


def show_export(outcome: Outcome, verbose: bool) -> None:
    """Print what was exported."""
    stages.print_export(outcome.summary)


def show_profile(outcome: Outcome, verbose: bool) -> None:
    """Print what was measured."""
    stages.print_profile(outcome.summary)


def show_analysis(outcome: Outcome, verbose: bool) -> None:
    """Print what the capsules do."""
    stages.print_analysis(outcome.summary)


def show_evaluation(outcome: Outcome, verbose: bool) -> None:
    """Print the score of a checkpoint."""
    stages.print_evaluation(outcome.summary)


def show_inspection(outcome: Outcome, verbose: bool) -> None:
    """Print sizes and costs: of one network, or of those of a run."""
    if "groups" in outcome.summary:
        stages.print_inspection(outcome.summary, verbose)
    else:
        stages.print_costs(outcome.run, outcome.summary)
