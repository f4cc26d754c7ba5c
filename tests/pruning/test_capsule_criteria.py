"""Criteria of primary capsules, each against plain loops over images, classes and capsules."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_tables import restored
from prunables import JoinedTrunk, capsule_network
from torch import nn

from capsprune.capsules import margin_loss, squash
from capsprune.capsules.head import head_of
from capsprune.errors import StrategyError
from capsprune.pruning import capsule_criteria
from capsprune.pruning.capsule_groups import find_capsule_groups
from capsprune.pruning.criteria import Scoring, rank_channels, takes_images
from capsprune.pruning.names import CAPSULE_CRITERIA, DEFAULT_CAPSULE_CRITERION

CHANNEL_LIKE = {"dense": {}, "factored": {"rank": 5}, "depthwise": {}, "pointwise": {}}


def small(iterations=3, seed=0, **head):
    torch.manual_seed(seed)
    return capsule_network(
        JoinedTrunk(7, 6), 4, **{"d1": 3, "d2": 4, "iterations": iterations} | head
    )


def batches_of(network, seed=0, sizes=(5, 3)):
    generator = torch.Generator().manual_seed(seed)
    classes = len(network.output_caps.weight)
    return [
        (
            torch.randn(size, 3, 4, 4, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def scored(name, network, batches, seed=0):
    dependencies = find_capsule_groups(network, 4)
    objective = head_of(network).objective
    return CAPSULE_CRITERIA[name](Scoring(network, dependencies, batches, seed, objective))


def images_one_by_one(network, batches):
    """Yield u, [I, D1], the true class, and what the last iteration comes to, in plain loops."""
    weight, bias = network.output_caps.weight.double(), network.output_caps.bias.double()
    classes, capsules = weight.shape[:2]
    for images, labels in batches:
        for image, label in zip(images, labels.tolist(), strict=True):
            u = network.primary_caps(network.trunk(image.unsqueeze(0)))[0].double()
            votes = [[u[i] @ weight[j, i] for i in range(capsules)] for j in range(classes)]
            b = torch.zeros(classes, capsules, dtype=torch.float64)
            for _ in range(network.output_caps.iterations):
                c = torch.softmax(b, dim=0)
                s = [sum(c[j, i] * votes[j][i] for i in range(capsules)) for j in range(classes)]
                v = [squash(s[j] + bias[j]) for j in range(classes)]
                for j in range(classes):
                    for i in range(capsules):
                        b[j, i] += votes[j][i] @ v[j]
            yield u, label, votes, b, c, s, v


def coupling(network, batches):
    rows = [
        torch.softmax(b, dim=0).amax(0) for _, _, _, b, *_ in images_one_by_one(network, batches)
    ]
    return torch.stack(rows).mean(0)


def contributions(network, batches):
    rows = []
    for _, label, votes, _, c, _, v in images_one_by_one(network, batches):
        direction = v[label] / v[label].norm()
        rows.append(
            torch.stack([c[label, i] * votes[label][i] @ direction for i in range(c.shape[1])])
        )
    return torch.stack(rows)


def changes(network, batches):
    rows = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            u = network.primary_caps(network.trunk(image.unsqueeze(0))).detach().requires_grad_()
            lengths = network.output_caps(u).norm(dim=-1)
            (gradient,) = torch.autograd.grad(margin_loss(lengths, label.unsqueeze(0)), u)
            rows.append((u * gradient)[0].sum(1).detach().double())
    return torch.stack(rows)


def lengths(network, batches):
    return torch.stack([u.norm(dim=1) for u, *_ in images_one_by_one(network, batches)])


def norms(network, batches):
    weight = network.output_caps.weight.double()
    return torch.stack([weight[:, i].norm() for i in range(weight.shape[1])])


REFERENCES = {
    "coupling": coupling,
    "contribution": lambda *given: contributions(*given).mean(0),
    "contribution-variance": lambda *given: contributions(*given).var(0, correction=0),
    "length-std": lambda *given: lengths(*given).std(0, correction=0),
    "taylor": lambda *given: changes(*given).abs().mean(0),
    "fisher": lambda *given: changes(*given).square().mean(0),
    "weight-norm": norms,
}


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("name", REFERENCES)
def test_criteria_are_their_equations(name, iterations):
    network = small(iterations)
    batches = batches_of(network)
    expected = REFERENCES[name](network, batches).detach()
    assert len(expected.unique()) > 1
    torch.testing.assert_close(scored(name, network, batches), expected, rtol=1e-4, atol=1e-9)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(CAPSULE_CRITERIA)),
    kind=st.sampled_from(sorted(CHANNEL_LIKE)),
    d1=st.integers(1, 5),
    d2=st.integers(1, 5),
    iterations=st.integers(1, 4),
    sizes=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_every_capsule_of_every_kind_is_scored(name, kind, d1, d2, iterations, sizes, seed):
    network = small(iterations, seed, primary=kind, d1=d1, d2=d2, **CHANNEL_LIKE[kind])
    before = copy.deepcopy(network.state_dict())
    batches = batches_of(network, seed, sizes)
    scores = scored(name, network, batches)
    assert scores.shape == (network.primary_caps.capsules,)
    assert scores.dtype == torch.float64 and bool(scores.isfinite().all())
    # Neither the network nor how the images fall into batches changes anything.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    joined = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    if name != "least-squares":  # whose order may turn on the last digit
        torch.testing.assert_close(scored(name, network, joined), scores, rtol=1e-3, atol=1e-7)


def test_votes_are_formed_for_few_images_at_a_time(monkeypatch):
    network = small()
    batches = batches_of(network)
    whole = scored("contribution", network, batches)
    seen, form = [], capsule_criteria.votes_of
    monkeypatch.setattr(capsule_criteria, "images_at_once", lambda weight: 2)
    monkeypatch.setattr(
        capsule_criteria, "votes_of", lambda u, w: seen.append(len(u)) or form(u, w)
    )
    torch.testing.assert_close(scored("contribution", network, batches), whole)
    assert seen == [2, 2, 1, 2, 1]


def test_random_follows_from_the_seed():
    network = small()
    first, again, other = (scored("random", network, (), seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_capsule_that_says_what_others_say_goes_early():
    """Its weights are large, and yet nothing is lost without it."""
    network = small(1)
    conv, weight = network.primary_caps.conv, network.output_caps.weight.data
    with torch.no_grad():
        for tensor in (conv.weight, conv.bias):
            tensor[0:3] = tensor[3:6]
        weight[:, :2] *= 5
    batches = batches_of(network, sizes=(40, 40))
    by_selection = scored("least-squares", network, batches)
    assert int(by_selection.argmin()) in (0, 1)
    assert sorted((-by_selection).tolist()) == list(range(network.primary_caps.capsules))
    by_norm = scored("weight-norm", network, batches)
    assert set(by_norm.topk(2).indices.tolist()) == {0, 1}


@pytest.mark.parametrize("kind", sorted(CHANNEL_LIKE))
def test_each_group_is_ranked_by_its_kind(kind):
    network = small(4, primary=kind, **CHANNEL_LIKE[kind])
    dependencies = find_capsule_groups(network, 4)
    batches = batches_of(network)
    given = {"batches": batches, "objective": head_of(network).objective}
    rankings = rank_channels(network, dependencies, "l1", capsule_criterion="contribution", **given)
    scores = scored("contribution", network, batches)
    for index, (group, ranking) in enumerate(zip(dependencies.groups, rankings, strict=True)):
        if group.kind == "channels":
            weight = network.get_submodule(group.name).weight.detach().double()
            expected = weight.flatten(1).abs().sum(1)
            assert ranking.tolist() == expected.argsort(descending=True, stable=True).tolist()
        elif group.kind == "capsules":
            owners = dependencies.owners[("primary_caps", "out")]
            mine = owners.group == index
            expected = scores[torch.from_numpy(np.flatnonzero(mine))]
            expected = expected[torch.from_numpy(np.argsort(owners.channel[mine]))]
            assert ranking.tolist() == expected.argsort(descending=True).tolist()
        else:
            assert ranking.tolist() == list(range(group.channels))
    kinds = {group.kind for group in dependencies.groups}
    assert {"capsules", "iterations"} <= kinds
    assert ("rank" in kinds) == (kind == "factored")


@pytest.mark.parametrize("criterion", ["l2", "bn-scale", "taylor", "random"])
def test_criteria_of_channels_see_the_trunk_alone(criterion):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    network = capsule_network(trunk, 4, primary="factored", rank=3, d1=2)
    dependencies = find_capsule_groups(network, 4)
    given = {"batches": batches_of(network), "objective": head_of(network).objective}
    rankings = rank_channels(network, dependencies, criterion, **given)
    assert [sorted(r.tolist()) for r in rankings] == [
        list(range(count)) for count in dependencies.channels
    ]


def test_a_capsule_criterion_from_outside_is_named_like_any():
    network = small()
    dependencies = find_capsule_groups(network, 4)
    with restored(CAPSULE_CRITERIA):

        @CAPSULE_CRITERIA.register("last-first", "the order backwards")
        def last_first(scoring):
            return torch.arange(scoring.capsule_network.primary_caps.capsules).double()

        assert not takes_images(last_first)
        rankings = rank_channels(network, dependencies, capsule_criterion="last-first")
        mine = rankings[[group.kind for group in dependencies.groups].index("capsules")]
        assert mine.tolist() == list(range(network.primary_caps.capsules))[::-1]
        assert "last-first (the order backwards)" in CAPSULE_CRITERIA.help()


def test_what_cannot_be_had_is_refused():
    network = small()
    dependencies = find_capsule_groups(network, 4)
    with pytest.raises(StrategyError, match=r"capsule criterion 'tayler'; did you mean taylor"):
        rank_channels(network, dependencies, capsule_criterion="tayler")
    with pytest.raises(ValueError, match="give batches"):
        rank_channels(network, dependencies, capsule_criterion="taylor")
    assert DEFAULT_CAPSULE_CRITERION in CAPSULE_CRITERIA
