"""The fit loop: one for every stage that trains, on Lightning Fabric."""

from __future__ import annotations

import copy
import io
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from capsprune.data.loaders import set_epoch
from capsprune.errors import CapspruneError
from capsprune.files import replacing
from capsprune.schedule import Schedule
from capsprune.training.evaluate import evaluate
from capsprune.training.objective import Objective

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Saving the state may take one part in so many of the time.
_SAVE_SHARE = 20


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    lr: float
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as they are written to JSON."""
        return asdict(self)


@dataclass
class History:
    """All epochs of a training, and which of them counts."""

    epochs: list[Epoch] = field(default_factory=list)
    #: Index of the epoch whose weights the network has: the one with the lowest validation loss, or
    #: the last, as the schedule says.
    kept: int = -1
    stopped_early: bool = False

    @property
    def seconds(self) -> float:
        """Seconds over all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(frozen=True)
class Batches:
    """Batches to train or to evaluate on: a loader, and what is done to a batch on the device."""

    #: Yields uint8 images [batch, C, H, W] and labels [batch].
    loader: DataLoader[tuple[Tensor, Tensor]]
    #: Maps them to normalised float images [batch, C, S, S].
    transform: nn.Module


@dataclass(frozen=True)
class Training:
    """What a network is trained for, on what, and how."""

    #: Loss and class scores.
    objective: Objective
    #: Shuffled batches.
    train: Batches
    #: Batches by whose loss epochs are compared.
    validation: Batches
    #: Epochs, optimiser, learning rate, patience.
    schedule: Schedule
    #: Of shuffling and augmentation.
    seed: int


def _ignore(*told: object) -> None:
    """Do nothing with what is told."""


@dataclass(frozen=True)
class Listener:
    """What is told of a training while it goes on."""

    #: Called with the steps done and the steps in all.
    on_step: Callable[[int, int], None] = _ignore
    #: Called after each epoch.
    on_epoch: Callable[[Epoch], None] = _ignore
    #: Called with a sentence where a kept state cannot be used.
    on_damaged: Callable[[str], None] = _ignore


class _DamagedState(ValueError):
    """Why the state of a training cannot be used."""


class TrainingDiverged(CapspruneError):
    """The loss is no number any more."""


def fit(
    fabric: Fabric,
    network: nn.Module,
    training: Training,
    *,
    state_file: Path | None = None,
    listener: Listener = Listener(),
) -> History:
    """Train a network, and leave it with the weights of the epoch that its schedule keeps.

    Everything random follows from the seed and the number of the epoch, so a training that was
    interrupted and goes on from `state_file` ends where an uninterrupted one does.

    Args:
        fabric: launched; it knows device and precision.
        network: trained in place; parameters that need no gradient stay as they are.
        training: what for, on what, and how.
        state_file: where the state is kept while training; read if it is there already.
        listener: what is told of it.

    Raises:
        TrainingDiverged: if the loss becomes infinite or no number.
    """
    objective, schedule, seed = training.objective, training.schedule, training.seed
    network.to(memory_format=torch.channels_last)
    optimizer = schedule.optimizer(network)
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    # The loaders share images out between processes by themselves.
    loader, validation_loader = fabric.setup_dataloaders(
        training.train.loader, training.validation.loader, use_distributed_sampler=False
    )
    transform = fabric.to_device(training.train.transform)
    validation_transform = fabric.to_device(training.validation.transform)
    steps = len(loader)
    scheduler = schedule.lr_scheduler(optimizer, steps)

    history = History()
    kept_weights: dict[str, Tensor] | None = None
    if state_file is not None and state_file.is_file():
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        try:
            history, kept_weights = _load(state_file, parts, fabric.device)
        except _DamagedState as error:
            state_file.unlink()
            listener.on_damaged(
                f"What an interrupted training left in {state_file} is damaged ({error}), so "
                "the training starts again"
            )
    save_again_at = 0.0

    for number in range(len(history.epochs), schedule.epochs):
        if _out_of_patience(history, schedule):
            break
        started = time.perf_counter()
        torch.manual_seed(seed * 100_003 + number)
        set_epoch(loader, number)
        wrapped.train()
        total, images = 0.0, 0
        lr = optimizer.param_groups[0]["lr"]
        for step, (batch, labels) in enumerate(loader):
            batch = transform(batch).contiguous(memory_format=torch.channels_last)
            loss = objective.loss(wrapped(batch), labels)
            wrapped_optimizer.zero_grad()
            fabric.backward(loss)
            wrapped_optimizer.step()
            scheduler.step()
            total += float(loss.detach()) * len(labels)
            images += len(labels)
            if not math.isfinite(total):
                raise TrainingDiverged(
                    f"The training loss became {loss.item()} in epoch {number + 1}; give a "
                    f"lower --lr than {schedule.lr:g}."
                )
            listener.on_step(number * steps + step + 1, schedule.epochs * steps)
        result = evaluate(
            wrapped,
            (
                (validation_transform(b).contiguous(memory_format=torch.channels_last), labels)
                for b, labels in validation_loader
            ),
            objective,
        )
        if not math.isfinite(result.loss):
            raise TrainingDiverged(
                f"The validation loss became {result.loss} in epoch {number + 1}; give a lower "
                f"--lr than {schedule.lr:g}."
            )
        epoch = Epoch(
            epoch=number,
            train_loss=total / images,
            validation_loss=result.loss,
            validation_accuracy=result.accuracy,
            lr=lr,
            seconds=time.perf_counter() - started,
        )
        history.epochs.append(epoch)
        if not schedule.keeps_best:
            history.kept = number
        elif history.kept < 0 or result.loss < history.epochs[history.kept].validation_loss:
            history.kept = number
            kept_weights = copy.deepcopy(network.state_dict())
        listener.on_epoch(epoch)
        last = number + 1 == schedule.epochs
        if state_file is not None and not last and time.perf_counter() >= save_again_at:
            save_started = time.perf_counter()
            _save(
                state_file,
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "epochs": [epoch.to_dict() for epoch in history.epochs],
                    "kept": history.kept,
                    "kept_weights": kept_weights,
                },
            )
            now = time.perf_counter()
            save_again_at = now + _SAVE_SHARE * (now - save_started)

    history.stopped_early = len(history.epochs) < schedule.epochs
    if kept_weights is not None:
        network.load_state_dict(kept_weights)
    network.eval()
    return history


def _out_of_patience(history: History, schedule: Schedule) -> bool:
    if schedule.patience is None or history.kept < 0:
        return False
    return len(history.epochs) - 1 - history.kept >= schedule.patience


def _load(
    path: Path, parts: Mapping[str, Any], device: torch.device
) -> tuple[History, dict[str, Tensor] | None]:
    """Take up a training where it was saved.

    Raises:
        _DamagedState: if the file is not what `_save` left for these parts, which stay as they are.
    """
    before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look whether a byte has changed
            if (name := archive.testzip()) is not None:
                raise _DamagedState(f"{name} has changed")
        state = torch.load(path, map_location=device, weights_only=True)
        kept_weights = state["kept_weights"]
        if kept_weights is not None:  # whether they fit
            parts["network"].load_state_dict(kept_weights)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = History([Epoch(**epoch) for epoch in state["epochs"]], state["kept"])
        numbers = [epoch.epoch for epoch in history.epochs]
        if numbers != list(range(len(numbers))) or history.kept not in (-1, *numbers):
            raise _DamagedState("its epochs are not in order")
        return history, kept_weights
    except OSError:
        raise
    except Exception as error:  # Damaged bytes end in nearly any.
        for name, part in parts.items():
            part.load_state_dict(before[name])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise _DamagedState(reason) from error


def _save(path: Path, state: dict[str, Any]) -> None:
    # By way of memory: where torch itself writes, a full disk is no OSError.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())
