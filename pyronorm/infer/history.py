"""The course of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(repr=False)
class History:
    """The course of training, a line when printed and a table in a notebook.

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

    def to_dataframe(self) -> pd.DataFrame:
        """A row per epoch, with the fields of :class:`Epoch` as columns and ``epoch`` as index.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas as pd

        names = [field.name for field in fields(Epoch)]
        return pd.DataFrame([asdict(e) for e in self.epochs], columns=names).set_index("epoch")

    def __repr__(self) -> str:
        """How many epochs, and the loss of the first, the last and the best."""
        if not self.epochs:
            return "History(no epochs)"
        first, last = self.epochs[0], self.epochs[-1]
        text = f"History({len(self.epochs)} epochs in {self.seconds:.3g} s, loss {first.loss:.4g}"
        text += f" to {last.loss:.4g}" if last is not first else ""
        if last.validation_nll is not None:
            text += f", validation NLL {last.validation_nll:.4g}"
        kept = f", parameters of epoch {self.best_epoch}" if self.best_epoch != last.epoch else ""
        return f"{text}{kept})"

    def _repr_html_(self) -> str:
        """The table, in a notebook."""
        html: str = self.to_dataframe().to_html(max_rows=20, float_format="{:.4g}".format)
        return html

    @property
    def losses(self) -> list[float]:
        """The loss of each epoch."""
        return [epoch.loss for epoch in self.epochs]

    @property
    def seconds(self) -> float:
        """Training time of all epochs, without validation."""
        return sum(epoch.seconds for epoch in self.epochs)
