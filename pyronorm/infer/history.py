"""The course of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Epoch", "History"]


@dataclass(frozen=True)
class Epoch:
    """What happened in one epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean negative ELBO per training example, in nats, with the KL weight in force.
        kl_weight: the KL weight at the end of the epoch.
        lr: the learning rate of the first parameter group.
        seconds: training time, without validation.
        validation_nll: mean negative log predictive density per validation example, in nats.
    """

    epoch: int
    loss: float
    kl_weight: float
    lr: float
    seconds: float
    validation_nll: float | None = None


@dataclass
class History:
    """The course of training.

    Attributes:
        epochs: one entry per epoch.
        best_epoch: the epoch whose parameters were kept: the best on the validation data if
            ``patience`` was set, else the last one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The history in plain types."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the history of :meth:`state_dict`."""
        self.epochs[:] = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best_epoch = state["best_epoch"]

    @property
    def losses(self) -> list[float]:
        """The loss of each epoch."""
        return [epoch.loss for epoch in self.epochs]

    @property
    def seconds(self) -> float:
        """Training time of all epochs, without validation."""
        return sum(epoch.seconds for epoch in self.epochs)
