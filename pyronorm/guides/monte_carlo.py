"""The rows of a statistics bank: Monte-Carlo batch normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from pyronorm.checks import checked
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law, Rows
from pyronorm.model import NormalizationModel

__all__ = ["MonteCarloBatchNorm"]


class MonteCarloBatchNorm(Guide):
    r"""Monte-Carlo batch normalization: a random row of the bank, all layers together.

    The implicit posterior that training with batch normalization leaves behind: each draw replaces
    the population statistics of *all* layers by those of one training batch. It has draws and no
    density, so it predicts and exports to ArviZ, but an ELBO over it raises
    :class:`~pyronorm.errors.NoDensityError`. Rows are drawn with replacement; the bank itself, as a
    posterior, gives each row once.

    Args:
        model: the model whose latents to sample.
        bank: statistics of training batches, as many as there should be different draws.

    Sites: besides ``shift`` and ``scale`` an auxiliary site ``row``, the row drawn.

    Raises:
        ShapeError: if the bank belongs to another network.
        StatisticsError: if it belongs to other weights.

    Source: Teye, Azizpour & Smith, "Bayesian Uncertainty Estimation for Batch Normalized Deep
    Networks" (ICML 2018): replace the statistics, don't average them; biased variance.
    """

    has_density: ClassVar[bool] = False

    shift: Tensor
    scale: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, bank: StatisticsBank) -> None:
        super().__init__(model)
        bank.check(self.space, "guides.MonteCarloBatchNorm")
        bank.check_weights(
            model if isinstance(model, LatentNetwork) else model.network,
            "guides.MonteCarloBatchNorm",
        )
        self.register_buffer("shift", bank.shift.to(self.like))
        self.register_buffer("scale", bank.scale.to(self.like))
        self.stamp(model)

    def law(self) -> Law:
        """The rows, each as probable as the others."""
        return Rows(self.shift, self.scale, "guides.MonteCarloBatchNorm")

    def settings(self) -> dict[str, Any]:
        """The number of rows."""
        return {"rows": len(self.shift)}

    @classmethod
    def from_settings(
        cls, model: NormalizationModel, settings: Mapping[str, Any]
    ) -> MonteCarloBatchNorm:
        """A guide with as many neutral rows.

        Args:
            model: the model whose latents to sample.
            settings: from :meth:`settings`.
        """
        return cls(model, StatisticsBank.neutral(model.space, settings["rows"]))
