import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capsprune.pruning.search as search_module
from capsprune.errors import StrategyError
from capsprune.pruning.search import Candidate, CandidateFile, SearchSpace, search


@pytest.fixture(scope="module")
def cost(make_prunable):
    return make_prunable("resnet18", 32, "meta").cost


@settings(max_examples=60)
@given(
    target=st.floats(0.08, 0.99),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["resnet18", "mobilenet_v1", "mobilenet_v2"]),
)
def test_proposals_lie_on_the_target(make_prunable, target, seed, name):
    cost = make_prunable(name, 32, "meta").cost
    space = SearchSpace.around(cost, target)
    fractions = space.propose(np.random.default_rng(seed))
    assert fractions.shape == cost.channels.shape
    assert (fractions >= 0).all() and (fractions <= space.max_rate).all()
    assert abs(float(cost.flops_ratio(space.kept(fractions))) - target) <= 0.005


@settings(max_examples=20)
@given(target=st.floats(0.15, 0.95), seed=st.integers(0, 10_000))
def test_rounded_proposals_keep_multiples_of_eight(cost, target, seed):
    space = SearchSpace.around(cost, target, round_to=8)
    kept = space.kept(space.propose(np.random.default_rng(seed)))
    assert (kept % 8 == 0).all() and (kept > 0).all()
    assert abs(float(cost.flops_ratio(kept)) - target) <= 0.005


@pytest.mark.parametrize("max_rate", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("above", [-0.004, 0.0, 0.001, 0.02])
def test_a_space_that_is_accepted_has_proposals(cost, max_rate, above):
    lowest = SearchSpace(cost, 0.5, max_rate).lowest
    space = SearchSpace.around(cost, lowest + above, max_rate)
    fractions = space.propose(np.random.default_rng(0))
    assert abs(float(cost.flops_ratio(space.kept(fractions))) - lowest - above) <= 0.005
    assert (fractions <= max_rate).all()


def test_proposals_differ_and_follow_from_the_generator(cost):
    space = SearchSpace.around(cost, 0.5)
    first, again, other = (space.propose(np.random.default_rng((0, n))) for n in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.ptp(first) > 0.1  # groups are pruned unevenly


@pytest.mark.parametrize("max_rate", [0.2, 0.5])
def test_an_unreachable_target_names_the_lowest(cost, max_rate):
    lowest = SearchSpace(cost, 0.5, max_rate).lowest
    all_at_most = cost.channels - np.floor(max_rate * cost.channels).astype(int)
    assert lowest == float(cost.flops_ratio(all_at_most))
    with pytest.raises(StrategyError, match=rf"least is {lowest:.3f}.*--max-rate or --flops"):
        SearchSpace.around(cost, 0.05, max_rate)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_target_outside_0_and_1_is_refused(cost, target):
    with pytest.raises(StrategyError, match="not between 0 and 1"):
        SearchSpace.around(cost, target)


@pytest.mark.parametrize("max_rate", [0.0, 1.0, -0.5])
def test_a_largest_fraction_outside_0_and_1_is_refused(cost, max_rate):
    with pytest.raises(StrategyError, match="--max-rate"):
        SearchSpace.around(cost, 0.5, max_rate)


def test_largest_fractions_are_the_published_ones(cost):
    rates = [SearchSpace.around(cost, target).max_rate for target in (0.25, 0.5, 0.75)]
    assert rates == pytest.approx([0.8, 0.7, 0.4])


def searched(tiny, path, candidates=5, seed=0, **options):
    space = SearchSpace.around(tiny.cost, 0.5)
    return search(
        tiny.model,
        tiny.dependencies,
        space,
        candidates=candidates,
        seed=seed,
        calibration=[tiny.images(8, 1), tiny.images(8, 2)],
        scoring=[
            (tiny.images(32, 3), torch.arange(32) % 4),
            (tiny.images(9, 4), torch.arange(9) % 4),
        ],
        storage=CandidateFile(path),
        **options,
    )


def plain(candidates):
    """Candidates without the time they took."""
    return [replace(candidate, seconds={}) for candidate in candidates]


def test_the_same_seed_finds_the_same(tiny, tmp_path):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    seen = []
    first = searched(tiny, tmp_path / "a", on_candidate=seen.append)
    again = searched(tiny, tmp_path / "b")
    other = searched(tiny, tmp_path / "c", seed=1)
    assert seen == first.candidates and [c.index for c in seen] == [0, 1, 2, 3, 4]
    assert plain(first.candidates) == plain(again.candidates)
    assert plain([first.best]) == plain([again.best])
    assert first.candidates[0].fractions != other.candidates[0].fractions
    assert first.best.score == max(candidate.score for candidate in first.candidates)
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_a_candidate_says_what_it_is(tiny, tmp_path):
    space = SearchSpace.around(tiny.cost, 0.5)
    result = searched(tiny, tmp_path / "a", candidates=3)
    for candidate in result.candidates:
        kept = space.kept(np.array(candidate.fractions))
        assert candidate.macs == int(tiny.cost.macs(kept))
        assert candidate.flops_ratio == candidate.macs / tiny.cost.unpruned_macs
        assert abs(candidate.flops_ratio - 0.5) <= 0.005
        assert candidate.score * 41 == pytest.approx(round(candidate.score * 41))
    seconds = result.seconds()
    assert set(seconds) == {"surgery", "calibration", "scoring", "other"}
    assert all(value > 0 for value in seconds.values())


def test_a_candidate_is_scored_with_recalibrated_statistics(tiny, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        search_module, "recalibrate", lambda model, batches: calls.append(len(batches))
    )
    without = searched(tiny, tmp_path / "a", candidates=2)
    assert calls == [2, 2]
    monkeypatch.undo()
    assert searched(tiny, tmp_path / "b", candidates=2).best.loss != without.best.loss


@pytest.fixture
def shrinks(monkeypatch):
    """Counts the surgeries."""
    calls = []
    real = search_module.shrink
    monkeypatch.setattr(search_module, "shrink", lambda *given: calls.append(1) or real(*given))
    return calls


def test_a_search_goes_on_after_a_line_cut_in_the_middle(tiny, tmp_path, shrinks):
    whole = searched(tiny, tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len(lines) == 5 and len(shrinks) == 5
    path = tmp_path / "cut"
    for cut in (b"", lines[3][:1], lines[3][: len(lines[3]) // 2], lines[3][:-2]):
        path.write_bytes(b"".join(lines[:3]) + cut)
        shrinks.clear()
        resumed = searched(tiny, path)
        assert len(shrinks) == 2
        assert plain(resumed.candidates) == plain(whole.candidates)
        assert plain([resumed.best]) == plain([whole.best])
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == 5


def test_a_search_goes_on_after_only_the_newline_was_lost(tiny, tmp_path, shrinks):
    whole = searched(tiny, tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    path = tmp_path / "cut"
    path.write_bytes(b"".join(lines[:3]).rstrip(b"\n"))
    assert plain(searched(tiny, path).candidates) == plain(whole.candidates)
    indices = [json.loads(line)["index"] for line in path.read_text().splitlines()]
    assert indices == [0, 1, 2, 3, 4]
    shrinks.clear()
    searched(tiny, path)
    assert not shrinks


def test_a_finished_search_is_not_repeated_and_a_longer_one_adds(tiny, tmp_path, shrinks):
    path = tmp_path / "c"
    three = searched(tiny, path, candidates=3)
    assert plain(searched(tiny, path, candidates=3).candidates) == plain(three.candidates)
    assert plain(searched(tiny, path, candidates=2).candidates) == plain(three.candidates[:2])
    assert len(shrinks) == 3
    assert plain(searched(tiny, path, candidates=5).candidates[:3]) == plain(three.candidates)
    assert len(shrinks) == 5


def test_an_interrupted_search_keeps_what_was_tried(tiny, tmp_path, shrinks):
    path = tmp_path / "c"

    def interrupt(candidate):
        if candidate.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tiny, path, on_candidate=interrupt)
    resumed = searched(tiny, path)
    assert len(shrinks) == 5
    assert plain(resumed.candidates) == plain(searched(tiny, tmp_path / "whole").candidates)


def candidate(index, score, loss):
    seconds = {"surgery": 0.0, "calibration": 0.0, "scoring": 0.0, "other": 0.0}
    return Candidate(index, (0.1, 0.2), 1, 0.5, score, loss, seconds)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 0.1), (0.6, 0.9), (0.4, 0.0)], 1),
        ([(0.6, 0.9), (0.6, 0.3), (0.6, 0.5), (0.1, 0.1)], 1),
        ([(0.6, 0.3), (0.6, 0.3)], 0),
    ],
)
def test_loss_decides_between_equal_scores(tiny, tmp_path, scores, best):
    storage = CandidateFile(tmp_path / "c")
    for index, (score, loss) in enumerate(scores):
        storage.append(candidate(index, score, loss))
    assert searched(tiny, tmp_path / "c", candidates=len(scores)).best.index == best


@pytest.mark.parametrize(
    "rest", [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"index": 7}\n', b"5\n", b"null\n"]
)
def test_foreign_lines_are_dropped(tmp_path, rest):
    path = tmp_path / "c"
    CandidateFile(path).append(candidate(0, 0.5, 1.0))
    content = path.read_bytes()
    path.write_bytes(content + rest)
    assert CandidateFile(path).candidates == [candidate(0, 0.5, 1.0)]
    assert path.read_bytes() == content


def test_a_candidate_out_of_turn_ends_what_is_read(tmp_path):
    storage = CandidateFile(tmp_path / "c")
    for index in (0, 1, 3):
        storage.append(candidate(index, 0.5, 1.0))
    assert [c.index for c in CandidateFile(tmp_path / "c").candidates] == [0, 1]
