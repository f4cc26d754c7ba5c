import pytest
import torch
from torch import nn

from capsprune.pruning.adaptive_bn import recalibrate


@pytest.fixture
def batches(tiny):
    return [tiny.images(6, seed) * (1 + seed) + seed for seed in range(3)]


def test_statistics_are_the_mean_over_batches(tiny, batches):
    inputs = {"bn1": [], "bn2": []}
    handles = [
        getattr(tiny.model, name).register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0].detach().double())
        )
        for name, kept in inputs.items()
    ]
    recalibrate(tiny.model, batches)
    for handle in handles:
        handle.remove()
    with torch.no_grad():  # the first by hand: nothing normalised stands before it
        inputs["bn1"] = [tiny.model.stem(batch).double() for batch in batches]
    for name, kept in inputs.items():
        norm = getattr(tiny.model, name)
        means = torch.stack([x.mean((0, 2, 3)) for x in kept])
        variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in kept])
        torch.testing.assert_close(norm.running_mean.double(), means.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            norm.running_var.double(), variances.mean(0), rtol=1e-4, atol=1e-5
        )


def test_what_was_there_before_is_forgotten(tiny, batches):
    recalibrate(tiny.model, batches)
    first = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    for norm in (tiny.model.bn1, tiny.model.bn2, tiny.model.bn3):
        norm.running_mean.fill_(99)
        norm.running_var.fill_(99)
    recalibrate(tiny.model, batches)
    assert all(torch.equal(value, first[key]) for key, value in tiny.model.state_dict().items())


def test_nothing_else_changes(tiny, batches):
    tiny.model.bn2.momentum = 0.37
    tiny.model.train()
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    recalibrate(tiny.model, batches)
    assert not any(module.training for module in tiny.model.modules())
    assert [n.momentum for n in (tiny.model.bn1, tiny.model.bn2)] == [0.1, 0.37]
    for name, parameter in tiny.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_other_layers_stay_in_evaluation_mode():
    model = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    batch = torch.randn(8, 3, 4, 4)
    recalibrate(model, [batch])
    expected = model[1](batch).mean((0, 2, 3))
    torch.testing.assert_close(model[2].running_mean, expected, rtol=1e-4, atol=1e-5)


def test_a_failure_restores_momentum_and_mode(tiny, batches):
    with pytest.raises(RuntimeError):
        recalibrate(tiny.model, [batches[0], torch.zeros(2, 5, 4, 4)])
    assert tiny.model.bn1.momentum == 0.1 and not tiny.model.bn1.training
