import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import capsprune.pruning.evaluation as evaluation_module
import capsprune.pruning.workers as workers_module
from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.head import head_of
from capsprune.errors import StrategyError, StudyError
from capsprune.pruning.adaptive_bn import recalibrate
from capsprune.pruning.candidate import PARTS, Candidate
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.channels import prune_channels
from capsprune.pruning.cost import CostModel
from capsprune.pruning.criteria import l1_ranking, rank_channels
from capsprune.pruning.evaluation import Evaluator, LatencyLimit, Task
from capsprune.pruning.names import SAMPLERS
from capsprune.pruning.search import Plan, SearchSettings, plan_rungs, search
from capsprune.pruning.study import Study
from capsprune.pruning.target import Target
from capsprune.pruning.workers import ProcessWorkers
from capsprune.training.evaluate import evaluate
from capsprune.training.objective import CROSS_ENTROPY, Objective


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(tiny, batches=2):
    return {
        "calibration": [tiny.images(8, seed) for seed in range(1, batches + 1)],
        "scoring": [
            (tiny.images(32, 3), torch.arange(32) % 4),
            (tiny.images(9, 4), torch.arange(9) % 4),
        ],
    }


def evaluator(tiny, batches=2, **changed):
    parts = {"rankings": tiny.rankings, "objective": CROSS_ENTROPY, **data(tiny, batches)}
    return Evaluator(tiny.model, tiny.dependencies, **{**parts, **changed})


def searched(tiny, path=None, candidates=5, seed=0, batches=2, **given):
    """Search; `given` are parts of the evaluator, settings, or arguments of `search`."""
    changed = {key: given.pop(key) for key in ("rankings", "latency") if key in given}
    settings = {key: given.pop(key) for key in ("sampler", "reduction_factor") if key in given}

    def run(study):
        return search(
            evaluator(tiny, batches, **changed),
            Target(flops=0.5).search_space(tiny.cost),
            SearchSettings(candidates, seed, **settings),
            study=study,
            **given,
        )

    if path is None:
        return run(None)
    with Study.local(path) as study:
        return run(study)


def plain(candidates):
    """Candidates without the time they took."""
    return [replace(candidate, seconds={}) for candidate in candidates]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_finds_the_same(tiny, tmp_path, sampler):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    seen = []
    first = searched(
        tiny, tmp_path / "a", sampler=sampler, on_candidate=lambda *given: seen.append(given)
    )
    again = searched(tiny, sampler=sampler)
    other = searched(tiny, sampler=sampler, seed=1)
    assert [given[0] for given in seen] == first.candidates
    assert [given[1:] for given in seen] == [(done, 5) for done in range(1, 6)]
    assert [c.index for c in first.candidates] == [0, 1, 2, 3, 4]
    assert plain(first.candidates) == plain(again.candidates)
    assert plain([first.best]) == plain([again.best])
    assert first.candidates[0].fractions != other.candidates[0].fractions
    assert first.best.score == max(candidate.score for candidate in first.candidates)
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_a_candidate_says_what_it_is(tiny):
    space = Target(flops=0.5).search_space(tiny.cost)
    result = searched(tiny, candidates=3)
    for candidate in result.candidates:
        kept = space.kept(np.array(candidate.fractions))
        assert candidate.macs == int(tiny.cost.macs(kept))
        assert candidate.parameters == int(tiny.cost.parameters(kept))
        assert candidate.flops_ratio == candidate.macs / tiny.cost.unpruned_macs
        assert abs(candidate.flops_ratio - 0.5) <= 0.005
        assert candidate.score * 41 == pytest.approx(round(candidate.score * 41))
    seconds = result.seconds()
    assert set(seconds) == set(PARTS)
    assert all(seconds[part] > 0 for part in PARTS if part != "latency")
    assert seconds["latency"] < 0.01


def test_a_candidate_is_scored_with_recalibrated_statistics(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(
        evaluation_module, "recalibrate", lambda model, batches: calls.append(len(batches))
    )
    without = searched(tiny, candidates=2)
    assert calls == [2, 2]
    monkeypatch.undo()
    assert searched(tiny, candidates=2).best.loss != without.best.loss


def test_the_ranking_decides_which_channels_go(tiny):
    backwards = [ranking.flip(0) for ranking in rank_channels(tiny.model, tiny.dependencies, "l1")]
    assert searched(tiny, rankings=backwards).best.loss != searched(tiny).best.loss


@pytest.fixture
def shrinks(monkeypatch):
    """Counts the surgeries."""
    calls = []
    real = evaluation_module.prune_channels
    monkeypatch.setattr(
        evaluation_module, "prune_channels", lambda *given: calls.append(1) or real(*given)
    )
    return calls


def test_a_finished_search_is_not_repeated_and_a_longer_one_adds(tiny, tmp_path, shrinks):
    path = tmp_path / "c"
    three = searched(tiny, path, candidates=3)
    assert searched(tiny, path, candidates=3).candidates == three.candidates
    assert searched(tiny, path, candidates=2).candidates == three.candidates[:2]
    assert len(shrinks) == 3
    assert searched(tiny, path, candidates=5).candidates[:3] == three.candidates
    assert len(shrinks) == 5


@pytest.mark.parametrize(
    ("sampler", "factor"), [*((name, 1) for name in SAMPLERS), ("random", 2), ("tpe", 2)]
)
def test_an_interrupted_search_goes_on(tiny, tmp_path, shrinks, sampler, factor):
    whole = searched(tiny, candidates=9, sampler=sampler, reduction_factor=factor)
    tries = len(shrinks)
    shrinks.clear()
    for stop in itertools.count(4, 4):

        def interrupt(candidate, done, total, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        try:
            resumed = searched(
                tiny,
                tmp_path / "c",
                candidates=9,
                sampler=sampler,
                reduction_factor=factor,
                on_candidate=interrupt,
            )
            break
        except KeyboardInterrupt:
            continue
    assert len(shrinks) == tries
    assert plain(resumed.candidates) == plain(whole.candidates)
    assert plain([resumed.best]) == plain([whole.best])


def test_a_search_of_another_kind_is_refused(tiny, tmp_path):
    searched(tiny, tmp_path / "c", candidates=1)
    for options in ({"seed": 1}, {"sampler": "tpe"}, {"reduction_factor": 2}):
        with pytest.raises(StudyError, match="another search"):
            searched(tiny, tmp_path / "c", **{"candidates": 1, **options})


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 0.1), (0.6, 0.9), (0.4, 0.0)], 1),
        ([(0.6, 0.9), (0.6, 0.3), (0.6, 0.5), (0.1, 0.1)], 1),
        ([(0.6, 0.3), (0.6, 0.3)], 0),
    ],
)
def test_loss_decides_between_equal_scores(tiny, tmp_path, scores, best):
    with Study.local(tmp_path / "c") as study:
        for index, (score, loss) in enumerate(scores):
            claim = study.rung(0).claim(index, (0.1, 0.2), 0.7)
            study.rung(0).finish(claim, Candidate(index, (0.1, 0.2), 1, 0.5, 1, score, loss))
    found = searched(tiny, tmp_path / "c", candidates=len(scores))
    assert found.best.index == best
    assert found.ties == sum(score == max(scores)[0] for score, _ in scores)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 100).map(lambda count: count / 100),
            st.floats(0, 5).map(lambda loss: round(loss, 3)),
            st.sampled_from([0.0, 0.1, 2.0]),
        ),
        min_size=2,
    )
)
def test_samplers_are_told_numbers_in_the_order_of_the_candidates(entries):
    candidates = [
        Candidate(0, (), 1, 0.5, 1, score, loss, violation=violation)
        for score, loss, violation in entries
    ]
    for one, two in itertools.combinations(candidates, 2):
        if one.objective > two.objective:
            assert one.rank > two.rank
        if one.feasible and two.feasible and one.rank > two.rank:
            assert one.objective > two.objective


def test_a_candidate_whose_outputs_are_no_numbers_comes_last_and_has_no_loss_in_json():
    broken, poor = (
        Candidate(index, (0.5,), 1, 0.5, 1, 0.0, loss)
        for index, loss in enumerate((float("inf"), 50.0))
    )
    assert broken.rank < poor.rank and broken.objective <= poor.objective
    assert "loss" not in broken.to_dict()
    assert Candidate.from_dict(broken.to_dict()) == broken


def test_outputs_that_are_no_numbers_score_nothing(tiny):
    (task,) = tasks(tiny, 1)
    with torch.no_grad():
        next(tiny.model.parameters()).fill_(float("nan"))
    outcome = evaluator(tiny)(task)
    assert (outcome.score, outcome.loss) == (0.0, float("inf"))


@settings(max_examples=200)
@given(
    candidates=st.integers(1, 2000),
    calibration=st.integers(1, 200),
    scoring=st.integers(1, 50),
    factor=st.integers(1, 8),
)
def test_rungs_grow_in_batches_and_shrink_in_candidates(candidates, calibration, scoring, factor):
    rungs = plan_rungs(candidates, calibration, scoring, factor)
    assert rungs[0].candidates == candidates
    assert (rungs[-1].calibration, rungs[-1].scoring) == (calibration, scoring)
    for lower, upper in itertools.pairwise(rungs):
        assert 1 <= upper.candidates < lower.candidates
        assert lower.calibration <= upper.calibration and lower.scoring <= upper.scoring
        assert (lower.calibration, lower.scoring) != (upper.calibration, upper.scoring)


def test_the_best_of_1000_costs_what_100_full_tries_cost():
    rungs = plan_rungs(1000, 20, 16, factor=4)
    assert rungs == [Plan(1000, 1, 1), Plan(62, 5, 4), Plan(15, 20, 16)]
    assert sum(rung.candidates * (rung.calibration + rung.scoring) for rung in rungs) < 100 * 36


def test_halving_promotes_the_best_of_each_rung(tiny, monkeypatch):
    budgets = []
    real = evaluation_module.recalibrate

    def counting(model, batches):
        budgets.append(len(batches))
        real(model, batches)

    monkeypatch.setattr(evaluation_module, "recalibrate", counting)
    found = searched(tiny, candidates=12, batches=4, reduction_factor=2)
    assert found.plan == [Plan(12, 1, 1), Plan(6, 2, 1), Plan(3, 4, 2)]
    assert budgets == [1] * 12 + [2] * 6 + [4] * 3
    rungs = [[c for c in found.candidates if c.rung == number] for number in range(3)]
    for lower, upper in itertools.pairwise(rungs):
        best = sorted(lower, key=lambda c: (c.rank, -c.index), reverse=True)[: len(upper)]
        assert {c.index for c in best} == {c.index for c in upper}
        assert {c.fractions for c in best} == {c.fractions for c in upper}
    assert found.best == max(rungs[2], key=lambda c: c.rank)


def slow_where_wide(limit):
    """Pretend that the time follows from the first convolution's width: 1 ms a channel."""
    return LatencyLimit(limit, lambda network: float(network.stem.out_channels))


def test_what_is_too_slow_is_neither_scored_nor_taken(tiny):
    widths = [
        c.latency_ms
        for c in searched(tiny, candidates=12, latency=slow_where_wide(1000)).candidates
    ]
    limit = float(np.median(widths))
    scored = []
    found = searched(
        tiny,
        candidates=12,
        latency=slow_where_wide(limit),
        on_candidate=lambda c, done, total: scored.append(c.feasible),
    )
    assert 0 < scored.count(False) < 12
    assert [c.latency_ms for c in found.candidates] == widths
    assert all(c.feasible == (c.latency_ms <= limit) for c in found.candidates)
    assert all("score" not in c.to_dict() for c in found.candidates if not c.feasible)
    assert found.best.feasible
    halved = searched(tiny, candidates=12, latency=slow_where_wide(limit), reduction_factor=2)
    assert all(c.feasible for c in halved.candidates if c.rung > 0)


def test_nothing_fast_enough_names_the_fastest(tiny):
    with pytest.raises(StrategyError, match=r"None of 4 candidates.*fastest takes \d+.*--latency"):
        searched(tiny, candidates=4, latency=slow_where_wide(0.5))


@pytest.mark.parametrize("factor", [1, 2])
def test_two_workers_find_what_one_finds(tiny, tmp_path, factor):
    alone = searched(tiny, candidates=8, reduction_factor=factor)
    order = []
    both = searched(
        tiny,
        tmp_path / "c",
        candidates=8,
        reduction_factor=factor,
        workers=2,
        on_candidate=lambda c, done, total: order.append((done, total)),
    )
    assert order == [(n + 1, len(alone.candidates)) for n in range(len(alone.candidates))]
    assert [c.index for c in both.candidates] == [c.index for c in alone.candidates]
    for one, two in zip(plain(alone.candidates), plain(both.candidates), strict=True):
        assert replace(one, loss=0) == replace(two, loss=0)
        assert one.loss == pytest.approx(two.loss)
    assert both.best.index == alone.best.index


@pytest.mark.parametrize("workers", [1, 2])
def test_candidates_of_a_capsule_network_are_scored_by_its_own_loss(tiny, workers):
    torch.manual_seed(0)
    trunk = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
    )
    network = CapsuleNetwork(trunk, channels=16, feature_size=3, classes=4, d1=4, d2=4).eval()
    dependencies = find_capsule_groups(network, tiny.size)
    objective = head_of(network).objective
    space = Target(params=0.5).search_space(CostModel.build(network, dependencies, tiny.size))
    shown = data(tiny)
    tried = Evaluator(
        network, dependencies, l1_ranking(network, dependencies), **shown, objective=objective
    )
    best = search(tried, space, SearchSettings(3), workers=workers).best
    pruned = prune_channels(
        network, dependencies, tried.rankings, space.kept(np.array(best.fractions))
    )
    recalibrate(pruned, shown["calibration"])
    again = evaluate(pruned, shown["scoring"], objective)
    assert (best.score, best.loss) == (again.accuracy, pytest.approx(again.loss, rel=1e-5))
    with torch.no_grad():
        outputs = [(pruned(images), labels) for images, labels in shown["scoring"]]
    margins = sum(float(objective.loss(out, labels)) * len(labels) for out, labels in outputs)
    assert best.loss == pytest.approx(margins / 41, rel=1e-5)


def tasks(tiny, count):
    kept = Target(flops=0.5).search_space(tiny.cost).kept(np.full(2, 0.3))
    return [Task(index, kept, 1, 1) for index in range(count)]


def collected(workers, count):
    done = []
    while len(done) < count:
        done += workers.collect()
    return sorted(task.index for task, _ in done)


def test_the_candidate_of_a_dead_worker_is_tried_again(tiny):
    workers = ProcessWorkers(evaluator(tiny), 2)
    try:
        first, second = tasks(tiny, 2)
        workers.submit(first)
        (victim,) = workers.pool.pids
        os.kill(victim, signal.SIGSTOP)  # so that it cannot finish before it dies
        workers.submit(second)
        os.kill(victim, signal.SIGKILL)
        assert collected(workers, 2) == [0, 1]
        assert workers.busy == 0
        assert victim not in workers.pool.pids
    finally:
        workers.close()


def test_what_goes_wrong_in_a_worker_is_told(tiny):
    workers = ProcessWorkers(evaluator(tiny), 1)
    try:
        workers.submit(replace(tasks(tiny, 1)[0], kept=np.array([0, 5])))
        with pytest.raises(RuntimeError, match=r"ModelError in a worker.*lose all"):
            workers.collect()
    finally:
        workers.close()


def test_a_candidate_that_ends_every_worker_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(workers_module, "ATTEMPTS", 1)
    workers = ProcessWorkers(evaluator(tiny), 1)
    try:
        workers.submit(tasks(tiny, 1)[0])
        os.kill(workers.pool.pids[0], signal.SIGKILL)
        with pytest.raises(StudyError, match=r"exit code -9.*--workers"):
            workers.collect()
    finally:
        workers.close()


def test_a_loss_that_cannot_be_sent_to_workers_is_refused(tiny):
    mine = Objective(loss=lambda outputs, labels: outputs.sum(), scores=lambda outputs: outputs)
    with pytest.raises(StudyError, match=r"loss of this network cannot be sent.*--workers 1"):
        ProcessWorkers(evaluator(tiny, objective=mine), 2)
