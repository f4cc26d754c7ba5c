"""How long and how fast a network trains: the paper's schedules, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

#: What is trained: the backbone, what is left of it, or a head on it, with the trunk or without.
Training = Literal["baseline", "finetune", "caps-finetuned", "caps-frozen"]


@dataclass(frozen=True)
class Schedule:
    """Optimiser and learning rate over the epochs."""

    epochs: int
    #: Images a step.
    batch_size: int
    #: Peak learning rate.
    lr: float
    #: "one-cycle" warms up and anneals once over all steps; "exponential" decays every epoch.
    decay: Literal["one-cycle", "exponential"] = "one-cycle"
    #: Factor of an epoch, where the decay is exponential.
    gamma: float = 0.99
    weight_decay: float = 0.0
    #: Epochs without a better validation loss after which training stops; None to go on.
    patience: int | None = None

    @property
    def keeps_best(self) -> bool:
        """Whether the epoch with the lowest validation loss counts, and not the last one.

        One cycle ends with a learning rate of nothing: its last epoch is the one it aims at, and to
        choose another by a small validation set would only add chance.
        """
        return self.decay != "one-cycle"

    def changed(
        self, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None
    ) -> Schedule:
        """Return a schedule with what a user asked for in place of the defaults."""
        given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        return replace(self, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return an Adam optimiser over the parameters that take part in training."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        decayed = [p for p in parameters if p.dim() > 1]
        plain = [p for p in parameters if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)

    def lr_scheduler(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the course of the learning rate, to be advanced after every step."""
        if self.decay == "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=self.lr,
                # With fewer steps, torch's warm-up would have no length to divide by.
                total_steps=max(5, self.epochs * steps_per_epoch),
                pct_start=0.25,
                cycle_momentum=False,
            )
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.gamma ** (step // steps_per_epoch)
        )


#: The paper trains capsule networks with Adam, an exponential decay of 0.99 an epoch, batches of
#: 128, at most 100 epochs, and stops after 10 epochs without a better validation loss.
_PAPER = Schedule(epochs=100, batch_size=128, lr=1e-5, decay="exponential", patience=10)

#: For small data.
SHORT: Mapping[Training, Schedule] = {
    "baseline": Schedule(epochs=12, batch_size=64, lr=3e-3, weight_decay=0.02),
    "finetune": Schedule(epochs=5, batch_size=64, lr=1e-3, weight_decay=0.02),
    "caps-finetuned": Schedule(epochs=12, batch_size=64, lr=1e-3),
    "caps-frozen": Schedule(epochs=15, batch_size=64, lr=3e-3),
}

#: The paper's for capsule heads, and for data of any size.
LONG: Mapping[Training, Schedule] = {
    "baseline": Schedule(epochs=30, batch_size=128, lr=1e-3, weight_decay=0.02),
    "finetune": Schedule(epochs=15, batch_size=128, lr=5e-4, weight_decay=0.02),
    "caps-finetuned": _PAPER,
    "caps-frozen": replace(_PAPER, lr=1e-4),
}
