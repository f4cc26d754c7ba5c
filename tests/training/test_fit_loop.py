import io
import math
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from capsprune.capsules import CapsuleNetwork
from capsprune.capsules.dynamic_head import DYNAMIC_HEAD
from capsprune.data.images import TensorImages
from capsprune.data.loaders import data_loader
from capsprune.data.names import data_set
from capsprune.data.preprocessing import Preprocessing
from capsprune.data.sources import load_data
from capsprune.data.transforms import EvaluationTransform, TrainingTransform
from capsprune.schedule import Schedule
from capsprune.training.device import make_fabric
from capsprune.training.fit import Batches, Listener, Training, TrainingDiverged, fit
from capsprune.training.objective import CROSS_ENTROPY, Objective

SIZE = 8
SCHEDULE = Schedule(epochs=5, batch_size=32, lr=0.02)


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=SIZE)


def loaders(digits, schedule, *, count=200, seed=0):
    train = data_loader(
        digits.train.select(range(count)), batch_size=schedule.batch_size, shuffle=True, seed=seed
    )
    validation = data_loader(digits.validation.select(range(90)), batch_size=64)
    return (
        Batches(train, TrainingTransform(data_set("digits").augmentation, Preprocessing(SIZE))),
        Batches(validation, EvaluationTransform(Preprocessing(SIZE))),
    )


def tiny_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(256, 10),
    )


def fitted(fabric, digits, schedule=SCHEDULE, *, network=None, objective=CROSS_ENTROPY, **options):
    network = tiny_network() if network is None else network
    train, validation = loaders(digits, schedule)
    training = Training(objective, train, validation, schedule, options.pop("seed", 3))
    state_file = options.pop("state_file", None)
    return network, fit(
        fabric, network, training, state_file=state_file, listener=Listener(**options)
    )


def copy_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(network, state):
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in own)


def timeless(history):
    return [replace(epoch, seconds=0.0) for epoch in history.epochs]


def test_training_on_digits_lowers_the_loss(fabric, digits):
    steps, epochs = [], []
    network, history = fitted(
        fabric,
        digits,
        on_step=lambda *done: steps.append(done),
        on_epoch=epochs.append,
    )
    assert history.epochs == epochs and [e.epoch for e in epochs] == [0, 1, 2, 3, 4]
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert epochs[-1].validation_loss < 0.7 * epochs[0].validation_loss
    assert epochs[-1].validation_accuracy > 0.6
    assert steps == [(done, 35) for done in range(1, 36)]  # 200 images in batches of 32
    assert not history.stopped_early and not network.training
    assert history.seconds == sum(epoch.seconds for epoch in epochs) > 0


def test_the_same_seed_trains_the_same(fabric, digits):
    schedule = replace(SCHEDULE, epochs=2)
    first, history = fitted(fabric, digits, schedule)
    torch.rand(7)  # what was drawn elsewhere plays no part
    again, repeated = fitted(fabric, digits, schedule)
    other, _ = fitted(fabric, digits, schedule, seed=4)
    assert same(again, first.state_dict()) and timeless(history) == timeless(repeated)
    assert not same(other, first.state_dict())


@pytest.mark.parametrize("decay", ["one-cycle", "exponential"])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    fabric, digits, tmp_path, decay
):
    schedule = replace(SCHEDULE, decay=decay, weight_decay=0.01)
    whole, expected = fitted(fabric, digits, schedule)

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    state_file = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(fabric, digits, schedule, state_file=state_file, on_epoch=interrupt)
    assert state_file.is_file()
    done = []
    resumed, history = fitted(
        fabric,
        digits,
        schedule,
        network=tiny_network(seed=9),  # the state file has the weights
        state_file=state_file,
        on_epoch=done.append,
    )
    assert 0 < done[0].epoch <= 2  # it went on, and did not begin anew
    assert timeless(history) == timeless(expected) and history.kept == expected.kept
    assert same(resumed, whole.state_dict())


SHORT = replace(SCHEDULE, epochs=3)


@pytest.fixture(scope="module")
def interrupted(fabric, digits, tmp_path_factory):
    """The state of a training that was interrupted, and what a whole one gives."""
    state_file = tmp_path_factory.mktemp("interrupted") / "training.pt"

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(fabric, digits, SHORT, state_file=state_file, on_epoch=interrupt)
    return state_file.read_bytes(), *fitted(fabric, digits, SHORT)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _changed(content: bytes) -> bytes:
    """One bit of the weights is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        weights = archive.read(next(n for n in archive.namelist() if n.endswith("data/0")))
    place = content.index(weights)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _saved(change):
    def edit(content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content), weights_only=True)
        buffer = io.BytesIO()
        torch.save(change(state), buffer)
        return buffer.getvalue()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        _cut,
        lambda content: content[:-1],
        lambda content: b"\x80\x04half",
        lambda content: bytes(len(content)),
        _changed,
        _saved(lambda state: []),
        _saved(lambda state: {"network": state["network"]}),
        _saved(lambda state: {**state, "network": {}}),
        _saved(lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}}),
        _saved(lambda state: {**state, "scheduler": 1}),
        _saved(lambda state: {**state, "epochs": [{"epoch": 0}]}),
        _saved(lambda state: {**state, "epochs": state["epochs"][1:]}),
        _saved(lambda state: {**state, "kept": 99}),
        _saved(lambda state: {**state, "kept_weights": {"x": torch.zeros(1)}}),
    ],
)
def test_a_damaged_state_is_told_and_the_training_starts_again(
    fabric, digits, interrupted, tmp_path, damage
):
    content, whole, expected = interrupted
    state_file = tmp_path / "training.pt"
    state_file.write_bytes(damage(content))
    told, done = [], []
    network, history = fitted(
        fabric,
        digits,
        SHORT,
        state_file=state_file,
        on_epoch=done.append,
        on_damaged=told.append,
    )
    (sentence,) = told
    assert str(state_file) in sentence and sentence.endswith("the training starts again")
    assert "\n" not in sentence
    assert [epoch.epoch for epoch in done] == [0, 1, 2]
    assert same(network, whole.state_dict()) and timeless(history) == timeless(expected)


def test_an_interruption_within_an_epoch_is_made_up_for(fabric, digits, tmp_path):
    whole, _ = fitted(fabric, digits)

    def interrupt(done, total):
        if done == 17:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fitted(fabric, digits, state_file=tmp_path / "training.pt", on_step=interrupt)
    resumed, _ = fitted(fabric, digits, state_file=tmp_path / "training.pt")
    assert same(resumed, whole.state_dict())


def scripted(losses):
    """Cross-entropy in training; in validation, the next of `losses` for each epoch."""
    remaining = iter(losses)
    current = {}

    def loss(outputs, labels):
        if torch.is_grad_enabled():
            current.pop("epoch", None)
            return nn.functional.cross_entropy(outputs, labels)
        if "epoch" not in current:
            current["epoch"] = next(remaining)
        return torch.tensor(current["epoch"])

    return Objective(loss=loss, scores=lambda outputs: outputs)


def test_the_network_has_the_weights_of_its_best_epoch(fabric, digits):
    network, weights = tiny_network(), []
    _, history = fitted(
        fabric,
        digits,
        replace(SCHEDULE, decay="exponential"),
        network=network,
        objective=scripted([1.0, 0.3, 0.5, 0.3, 0.4]),
        on_epoch=lambda epoch: weights.append(copy_of(network)),
    )
    assert history.kept == 1  # the first of equals
    assert [epoch.validation_loss for epoch in history.epochs] == pytest.approx(
        [1.0, 0.3, 0.5, 0.3, 0.4]
    )
    assert same(network, weights[1]) and not same(network, weights[4])


def test_one_cycle_keeps_its_last_epoch(fabric, digits):
    network, weights = tiny_network(), []
    _, history = fitted(
        fabric,
        digits,
        network=network,
        objective=scripted([0.1, 0.3, 0.5, 0.7, 0.9]),
        on_epoch=lambda epoch: weights.append(copy_of(network)),
    )
    assert history.kept == 4 and not history.stopped_early
    assert same(network, weights[4]) and not same(network, weights[0])


@pytest.mark.parametrize(
    ("losses", "patience", "ran", "best"),
    [
        ([1.0, 0.5, 0.6, 0.7, 0.8, 0.1], 3, 5, 1),
        ([1.0, 0.5, 0.6, 0.4, 0.8, 0.9], 2, 6, 3),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1, 2, 0),
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], None, 6, 0),
    ],
)
def test_patience_stops(fabric, digits, losses, patience, ran, best):
    schedule = Schedule(epochs=6, batch_size=64, lr=0.01, decay="exponential", patience=patience)
    _, history = fitted(fabric, digits, schedule, objective=scripted(losses))
    assert (len(history.epochs), history.kept) == (ran, best)
    assert history.stopped_early is (ran < 6)


def test_patience_outlives_an_interruption(fabric, digits, tmp_path):
    schedule = Schedule(epochs=6, batch_size=64, lr=0.01, decay="exponential", patience=3)
    losses = [0.5, 0.6, 0.7, 0.8, 0.1, 0.1]

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    options = {"state_file": tmp_path / "training.pt"}
    with pytest.raises(KeyboardInterrupt):
        fitted(fabric, digits, schedule, objective=scripted(losses), on_epoch=interrupt, **options)
    saved = len(torch.load(tmp_path / "training.pt", weights_only=True)["epochs"])
    _, history = fitted(fabric, digits, schedule, objective=scripted(losses[saved:]), **options)
    assert len(history.epochs) == 4 and history.stopped_early


def test_divergence_names_the_learning_rate(fabric, digits):
    with pytest.raises(TrainingDiverged, match=r"--lr than 1e\+30"):
        fitted(fabric, digits, replace(SCHEDULE, lr=1e30, decay="exponential"))


def test_a_validation_loss_that_is_no_number_is_divergence(fabric, digits):
    with pytest.raises(TrainingDiverged, match=r"validation loss became nan in epoch 2.*--lr"):
        fitted(fabric, digits, objective=scripted([0.5, math.nan, 0.4, 0.4, 0.6]))


@pytest.mark.parametrize("epochs", [0, 1, 4])
@pytest.mark.parametrize("count", [31, 33, 100])
def test_short_trainings(fabric, digits, epochs, count):
    schedule = replace(SCHEDULE, epochs=epochs)
    network = tiny_network()
    before = copy_of(network)
    train, validation = loaders(digits, schedule, count=count)
    history = fit(fabric, network, Training(CROSS_ENTROPY, train, validation, schedule, seed=0))
    assert len(history.epochs) == epochs and not history.stopped_early
    assert same(network, before) is (epochs == 0)
    assert not network.training


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_trunk_stays_bit_for_bit_in_the_fit_loop(fabric, digits, frozen):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
    network = CapsuleNetwork(trunk, channels=16, feature_size=3, classes=10)
    if frozen:
        network.freeze_trunk()
    before = copy_of(network)
    schedule = Schedule(epochs=2, batch_size=32, lr=3e-3)
    _, history = fitted(fabric, digits, schedule, network=network, objective=DYNAMIC_HEAD.objective)
    moved = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    in_trunk = {key for key in before if key.startswith("trunk.")}
    assert moved & in_trunk == (set() if frozen else in_trunk)
    assert set(before) - in_trunk <= moved
    assert history.epochs[1].train_loss < history.epochs[0].train_loss


def test_a_last_single_image_does_not_break_batch_norm(fabric, digits):
    images = digits.train.select(range(33))
    assert isinstance(images, TensorImages)
    schedule = Schedule(epochs=1, batch_size=32, lr=0.01)
    seen = []
    network = tiny_network()
    network.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0])) if module.training else None
    )
    train, validation = loaders(digits, schedule, count=33)
    fit(fabric, network, Training(CROSS_ENTROPY, train, validation, schedule, seed=0))
    assert seen == [33]
