"""The course of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pyronorm.display import axes_or_new, displayed, frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Epoch", "History"]


@dataclass(frozen=True)
class Epoch:
    r"""What happened in one epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean negative ELBO per training example, in nats, with the KL weight in force.
        kl_weight: the KL weight at the end of the epoch.
        lr: the learning rate of the first parameter group.
        seconds: training time, without validation.
        validation_nll: mean negative log predictive density per validation example, in nats.
        nll: mean of :math:`-\log p(y_i | x_i, z)` per training example, over the draws of training: the
            likelihood's part of the loss; None with an estimator of your own.
        kl: the rest of the loss, over the KL weight: :math:`\mathrm{KL}(q \| p)` per training example,
            in nats; None where it is not known, with weight 0 say. ``loss`` is
            ``nll + kl_weight * kl`` where the weight is constant.
    """

    epoch: int
    loss: float
    kl_weight: float
    lr: float
    seconds: float
    validation_nll: float | None = None
    nll: float | None = None
    kl: float | None = None


@displayed
@dataclass(repr=False)
class History:
    """The course of training, a line when printed and a table in a notebook.

    Attributes:
        epochs: one entry per epoch.
        kept_epoch: the epoch whose parameters were kept: the best with
            :class:`pyronorm.EarlyStopping`, else the last one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    kept_epoch: int = 0

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation NLL; without validation the last one, 0 before any."""
        known = [e for e in self.epochs if e.validation_nll is not None]
        if known:
            return min(known, key=_badness).epoch
        return self.epochs[-1].epoch if self.epochs else 0

    def state_dict(self) -> dict[str, Any]:
        """The history in plain types."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "kept_epoch": self.kept_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the history of :meth:`state_dict`."""
        self.epochs[:] = [Epoch(**epoch) for epoch in state["epochs"]]
        self.kept_epoch = state["kept_epoch"]

    def to_dataframe(self) -> pd.DataFrame:
        """A row per epoch, with the fields of :class:`Epoch` as columns and ``epoch`` as index.

        Raises:
            ImportError: if pandas is not installed.
        """
        return frame(self._columns(), "History").set_index("epoch")

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Loss, its part of the likelihood, and the validation NLL by epoch.

        A circle marks the epoch whose parameters were kept.

        Args:
            ax: where to draw; None for a new figure.

        Raises:
            OptionError: if ``ax`` is none.
        """
        ax = axes_or_new(ax)
        columns = self._columns()
        labels = {
            "loss": "loss",
            "nll": "likelihood's part (nll)",
            "validation_nll": "validation NLL",
        }
        for name, label in labels.items():
            values = [math.nan if value is None else value for value in columns[name]]
            if not all(map(math.isnan, values)):
                ax.plot(columns["epoch"], values, label=label)
        name = (
            "loss"
            if not self.epochs or self.epochs[-1].validation_nll is None
            else "validation_nll"
        )
        for epoch in self.epochs:
            if epoch.epoch == self.kept_epoch:
                ax.plot([epoch.epoch], [getattr(epoch, name)], "o", color="black", fillstyle="none")
        ax.set(xlabel="epoch", ylabel="nats per example")
        if self.epochs:
            ax.legend()
        return ax

    def __repr__(self) -> str:
        """How many epochs, the loss of the first and the last, and whether the last was the best."""
        if not self.epochs:
            return "History(no epochs)"
        first, last = self.epochs[0], self.epochs[-1]
        text = f"History({len(self.epochs)} epochs in {self.seconds:.3g} s, loss {first.loss:.4g}"
        text += f" to {last.loss:.4g}" if last is not first else ""
        if last.nll is not None and last.kl is not None:
            text += f" (nll {last.nll:.4g}, KL {last.kl:.3g})"
        if last.validation_nll is not None:
            text += f", validation NLL {last.validation_nll:.4g}"
            best = next(epoch for epoch in self.epochs if epoch.epoch == self.best_epoch)
            if best is not last:
                text += f", worse than {best.validation_nll:.4g} in epoch {best.epoch}"
        if self.kept_epoch not in (0, last.epoch):
            text += f"; parameters of epoch {self.kept_epoch}"
        elif self.best_epoch != last.epoch:
            text += "; parameters of the last, pyronorm.EarlyStopping keeps the best"
        return f"{text})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {f.name: [getattr(epoch, f.name) for epoch in self.epochs] for f in fields(Epoch)}

    @property
    def losses(self) -> list[float]:
        """The loss of each epoch."""
        return [epoch.loss for epoch in self.epochs]

    @property
    def seconds(self) -> float:
        """Training time of all epochs, without validation."""
        return sum(epoch.seconds for epoch in self.epochs)


def _badness(epoch: Epoch) -> float:
    nll = epoch.validation_nll
    return math.inf if nll is None or math.isnan(nll) else nll
