"""What comes after the search of a stage that prunes: a smaller network, fine-tuned and kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.checkpoint import Architecture, Checkpoint, describe
from capsprune.data.sources import DataSplits
from capsprune.files import dump_json
from capsprune.inspection import checkpoint_costs
from capsprune.pipeline.alignment import odd_counts
from capsprune.pipeline.fitting import fit_network, score_network, score_summary
from capsprune.pipeline.searching import Pruning
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.candidate import Candidate
from capsprune.pruning.channels import layer_channels
from capsprune.pruning.search import SearchResult
from capsprune.pruning.strategy import Strategy
from capsprune.records import StageRecord
from capsprune.schedule import Schedule


@dataclass(frozen=True)
class Found:
    """The strategy of a stage, and what the search for it left."""

    strategy: Strategy
    #: What the stage's summary says of the search.
    summary: dict[str, Any]
    #: Text files for the checkpoint, by name.
    files: dict[str, str]

    @classmethod
    def given(cls, strategy: Strategy) -> Found:
        """Take a strategy that needed no search."""
        return cls(strategy, {}, {})

    @classmethod
    def by_search(cls, pruning: Pruning, result: SearchResult) -> Found:
        """Take the best candidate of a search."""
        options, best = pruning.options, result.best
        strategy = strategy_of(pruning, best, options.flops)
        summary = {
            "candidates": result.plan[0].candidates,
            "rungs": [rung.candidates for rung in result.plan],
            "sampler": options.sampler,
            "best_candidate": best.index,
            "best_score": best.score,
            "candidates_with_best_score": result.ties,
            "search_seconds": result.seconds(),
        }
        if best.latency_ms is not None:
            summary["latency_ms"] = best.latency_ms
        return cls(strategy, summary, candidates_file(result.candidates))


def strategy_of(pruning: Pruning, candidate: Candidate, flops: float | None = None) -> Strategy:
    """Write a candidate down as a strategy.

    Args:
        pruning: what it is a candidate of.
        candidate: which.
        flops: the FLOPs ratio that was asked for; None for the candidate's own.
    """
    return Strategy(
        pruning.network.name,
        candidate.flops_ratio if flops is None else flops,
        dict(zip(pruning.network.dependencies.names, candidate.fractions, strict=True)),
        pruning.options.round_to,
        pruning.criterion,
        pruning.head,
        pruning.capsule_criterion,
    )


def candidates_file(candidates: Iterable[Candidate]) -> dict[str, str]:
    """Return the file of all candidates that were tried, by its name."""
    lines = [dump_json(candidate.to_dict()) for candidate in candidates]
    return {"candidates.jsonl": "\n".join(lines) + "\n"}


def shrink(
    pruning: Pruning,
    found: Found,
    described: Architecture,
    splits: DataSplits,
    schedule: Schedule,
    summary: dict[str, Any],
    *,
    freeze: bool = False,
) -> StageRecord:
    """Prune the network, recalibrate it, fine-tune it, and commit what is left of it.

    Args:
        pruning: of the stage.
        found: the strategy.
        described: the network that is pruned.
        splits: the data.
        schedule: of the fine-tuning.
        summary: what the stage says of it beside what is measured here.
        freeze: fine-tune the head alone.
    """
    unpruned, stage = pruning.network, pruning.stage
    session, shown = stage.session, described.data.preprocessing
    kept = found.strategy.kept(unpruned.dependencies)
    ratio = unpruned.flops_ratio(kept)
    network = pruning.evaluator.prune(kept)
    if pruning.options.strategy is None and (
        said := odd_counts(_backbone_channels(network), _backbone_channels(unpruned.model))
    ):
        session.progress.say(said)
    if pruning.evaluator.changes_norms(kept):
        recalibrate(network, pruning.data.calibration)
    before = score_network(session, network, splits.test, shown)
    session.progress.say(f"{ratio:.1%} of the FLOPs remain; test accuracy {before.accuracy:.2%}")
    if freeze and isinstance(network, HeadedNetwork):
        network.freeze_trunk()
    history, training = fit_network(
        session, network, splits, shown, schedule, pruning.work, "Fine-tuning"
    )
    result = score_network(session, network, splits.test, shown)
    architecture = describe(
        network, described.blueprint, parent=described.id, metrics=result.to_dict()
    )
    whole = {
        "model": described.model,
        "data": described.data.name,
        **summary,
        **found.summary,
        "criterion": pruning.criterion,
        "flops_ratio": ratio,
        "accuracy_before_finetuning": before.accuracy,
        **training,
        **score_summary(result, splits.class_names),
        **checkpoint_costs(Checkpoint(network, architecture), frozen=freeze),
    }
    strategy = dump_json(found.strategy.to_dict(), indent=1) + "\n"
    files = {**found.files, "strategy.json": strategy}
    return stage.commit_checkpoint(network, architecture, history, whole, files)


def _backbone_channels(network: nn.Module) -> dict[str, dict[str, int]]:
    """Return the channel counts of a backbone, or of a trunk where there is a head."""
    return layer_channels(network.trunk if isinstance(network, HeadedNetwork) else network)
