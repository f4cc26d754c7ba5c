import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from capsprune.errors import StrategyError
from capsprune.options import PruneOptions
from capsprune.pruning.criteria import Scoring, l1_ranking, rank_channels
from capsprune.pruning.names import CRITERIA
from capsprune.pruning.strategy import Strategy
from capsprune.training.objective import Objective


def batches(tiny, count=2):
    return [(tiny.images(6, seed), torch.arange(6) % 4) for seed in range(count)]


def scores(name, tiny):
    return CRITERIA[name](Scoring(tiny.model, tiny.dependencies, batches(tiny), seed=0))


@pytest.mark.parametrize("name", CRITERIA)
def test_every_channel_is_ranked_once_and_nothing_changes(tiny, name):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in tiny.model.parameters()]
    rankings = rank_channels(tiny.model, tiny.dependencies, name, batches(tiny))
    assert [sorted(ranking.tolist()) for ranking in rankings] == [
        list(range(count)) for count in tiny.dependencies.channels
    ]
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in tiny.model.parameters()]
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


@pytest.mark.parametrize(("name", "order"), [("l1", 1), ("l2", 2)])
def test_norms_are_those_of_the_root_layers_filters(tiny, name, order):
    for group, score in zip(tiny.dependencies.groups, scores(name, tiny), strict=True):
        weight = tiny.model.get_submodule(group.name).weight.detach().double()
        expected = torch.linalg.vector_norm(weight.flatten(1), ord=order, dim=1)
        assert torch.allclose(score, expected)


def test_bn_scale_averages_the_norms_of_a_group(tiny):
    stem, inner = scores("bn-scale", tiny)
    expected = (tiny.model.bn1.weight.abs() + tiny.model.bn3.weight.abs()) / 2
    assert torch.allclose(stem, expected.detach().double())
    assert torch.allclose(inner, tiny.model.bn2.weight.detach().abs().double())


def test_taylor_is_the_squared_sum_of_weight_times_gradient(tiny):
    expected = torch.zeros(24, dtype=torch.float64)
    for images, labels in batches(tiny):
        tiny.model.zero_grad()
        functional.cross_entropy(tiny.model(images), labels).backward()
        weight = tiny.model.inner.weight
        expected += (weight * weight.grad).sum(dim=(1, 2, 3)).double().square().detach() / 2
    tiny.model.zero_grad(set_to_none=True)
    assert torch.allclose(scores("taylor", tiny)[1], expected, rtol=1e-4)


def test_taylor_estimates_what_removing_a_channel_costs(tiny):
    """To first order: halving a filter changes the loss by half of weight times gradient."""
    images, labels = batches(tiny)[0]
    estimate = CRITERIA["taylor"](Scoring(tiny.model, tiny.dependencies, [(images, labels)]))[1]
    with torch.no_grad():
        before = functional.cross_entropy(tiny.model(images), labels)
        changes = []
        for channel in range(24):
            tiny.model.inner.weight[channel] *= 0.99
            changes.append(float(functional.cross_entropy(tiny.model(images), labels) - before))
            tiny.model.inner.weight[channel] /= 0.99
    assert np.corrcoef(np.abs(changes), estimate.sqrt())[0, 1] > 0.95


def test_random_follows_from_the_seed(tiny):
    first, again, other = (
        rank_channels(tiny.model, tiny.dependencies, "random", seed=seed)[1] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_new_criterion_is_one_callable(tiny):
    def last_first(scoring):
        return [torch.arange(count) for count in scoring.dependencies.channels]

    rankings = rank_channels(tiny.model, tiny.dependencies, last_first)
    assert rankings[1].tolist() == list(range(23, -1, -1))


def test_equal_scores_keep_the_networks_order(tiny):
    with torch.no_grad():
        tiny.model.inner.weight.fill_(0.5)
    assert l1_ranking(tiny.model, tiny.dependencies)[1].tolist() == list(range(24))


def test_channels_of_several_positions(make_flat):
    flat = make_flat()
    for name in ("l1", "l2", "taylor", "random"):
        score = scores(name, flat)
        assert [len(s) for s in score] == flat.dependencies.channels.tolist()


def test_what_cannot_be_had_is_refused(make_flat, tiny):
    flat = make_flat()
    with pytest.raises(StrategyError, match=r"no batch norm.*--criterion l1"):
        rank_channels(flat.model, flat.dependencies, "bn-scale")
    with pytest.raises(StrategyError, match="taylor"):
        rank_channels(tiny.model, tiny.dependencies, "tayler")
    with pytest.raises(ValueError, match="give batches"):
        rank_channels(tiny.model, tiny.dependencies, "taylor")


def test_a_criterion_from_outside_is_named_like_any(tiny):
    @CRITERIA.register("last-first", "the order backwards")
    def last_first(scoring):
        return [torch.arange(count) for count in scoring.dependencies.channels]

    rankings = rank_channels(tiny.model, tiny.dependencies, "last-first")
    assert rankings[1].tolist() == list(range(23, -1, -1))
    assert PruneOptions(criterion="last-first").criterion == "last-first"
    assert "last-first (the order backwards)" in CRITERIA.help()
    assert Strategy("tiny", 0.5, {"stem": 0.5}, criterion="last-first").criterion in CRITERIA


def test_python_callers_give_a_callable_as_an_option():
    def nameless(scoring):
        return [torch.arange(count) for count in scoring.dependencies.channels]

    name = PruneOptions(criterion=nameless).criterion
    assert name.endswith("nameless") and CRITERIA[name] is nameless
    with pytest.raises(StrategyError, match="Unknown criterion 'tayler'; did you mean taylor"):
        PruneOptions(criterion="tayler")
    with pytest.raises(ValidationError, match="valid string"):
        PruneOptions(criterion=1)


def test_taylor_takes_the_networks_own_loss(tiny):
    doubled = Objective(
        loss=lambda outputs, labels: 2 * functional.cross_entropy(outputs, labels),
        scores=lambda outputs: outputs,
    )
    given = Scoring(tiny.model, tiny.dependencies, batches(tiny), objective=doubled)
    for twice, once in zip(CRITERIA["taylor"](given), scores("taylor", tiny), strict=True):
        assert torch.allclose(twice, 4 * once, rtol=1e-4)
