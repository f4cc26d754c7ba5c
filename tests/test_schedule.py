import pytest
import torch
from torch import nn

from capsprune.data.names import data_set
from capsprune.schedule import Schedule


def course(schedule, steps_per_epoch):
    """The learning rate of every step."""
    optimizer = schedule.optimizer(nn.Linear(2, 2))
    scheduler = schedule.lr_scheduler(optimizer, steps_per_epoch)
    rates = []
    for _ in range(schedule.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("stage", "lr"), [("caps-finetuned", 1e-5), ("caps-frozen", 1e-4)])
@pytest.mark.parametrize("data", ["tiny-imagenet", "cifar10"])
def test_the_paper_s_data_sets_have_the_paper_s_schedule(stage, lr, data):
    schedule = data_set(data).schedules[stage]
    assert (schedule.lr, schedule.epochs, schedule.batch_size) == (lr, 100, 128)
    assert schedule.patience == 10 and schedule.weight_decay == 0.0
    rates = course(schedule.changed(epochs=3), 4)
    assert rates == pytest.approx([lr] * 4 + [lr * 0.99] * 4 + [lr * 0.99**2] * 4)


def test_without_weight_decay_the_optimiser_is_adam():
    torch.manual_seed(0)
    ours, adams = nn.Linear(3, 2), nn.Linear(3, 2)
    adams.load_state_dict(ours.state_dict())
    optimizers = [
        data_set("tiny-imagenet").schedules["caps-frozen"].optimizer(ours),
        torch.optim.Adam(adams.parameters(), lr=1e-4),
    ]
    for step in range(5):
        for network, optimizer in zip((ours, adams), optimizers, strict=True):
            optimizer.zero_grad()
            network(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), adams.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stage", ["baseline", "finetune", "caps-finetuned", "caps-frozen"])
def test_small_data_train_briefly(stage):
    small = data_set("digits").schedules[stage]
    large = data_set("tiny-imagenet").schedules[stage]
    assert small == data_set("fashion-mnist").schedules[stage]
    assert small.epochs < large.epochs and small.lr > large.lr
    assert data_set("imagefolder:/somewhere").schedules[stage] == large


def test_what_is_asked_for_replaces_the_defaults():
    schedule = data_set("digits").schedules["baseline"]
    assert schedule.changed() == schedule
    changed = schedule.changed(epochs=0, batch_size=3, lr=0.5)
    assert (changed.epochs, changed.batch_size, changed.lr) == (0, 3, 0.5)
    assert (changed.weight_decay, changed.decay) == (schedule.weight_decay, schedule.decay)


def test_one_cycle_warms_up_and_anneals():
    rates = course(Schedule(epochs=10, batch_size=2, lr=0.1), 8)
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert max(rates) == pytest.approx(0.1, rel=1e-3) and rates[0] < 0.01 and rates[-1] < 1e-3
    assert 10 < peak < 30
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("steps", range(1, 13))
@pytest.mark.parametrize("decay", ["one-cycle", "exponential"])
def test_every_number_of_steps_has_a_course(steps, decay):
    rates = course(Schedule(epochs=1, batch_size=2, lr=0.1, decay=decay), steps)
    assert len(rates) == steps and all(0 < rate <= 0.1 + 1e-9 for rate in rates)


def test_weight_decay_spares_vectors_and_what_is_frozen():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    network[2].requires_grad_(False)
    groups = (
        Schedule(epochs=1, batch_size=2, lr=0.1, weight_decay=0.3).optimizer(network).param_groups
    )
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.3 for p in group["params"]}
    plain = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed == {id(network[0].weight)}
    assert plain == {id(network[0].bias), id(network[1].weight), id(network[1].bias)}
