"""The moments of a statistics bank, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from pyronorm.checks import checked
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Independent, Law
from pyronorm.laws.law import log_normal, normal
from pyronorm.model import NormalizationModel

__all__ = ["StochasticBatchNorm"]

# A layer without batch statistics has no spread; a density needs one.
_MIN_STD = 1e-6


class StochasticBatchNorm(Guide):
    r"""Stochastic batch normalization: Gaussian batch means, log-normal batch variances.

    The means and *unbiased* standard deviations of :math:`M` and :math:`\log S^2` over the rows of a
    bank, independent in every channel and layer. In the library's coordinates that is a normal shift
    and a log-normal scale, with nothing to learn.

    Args:
        model: the model whose latents to sample.
        bank: statistics of at least 2 batches.

    Raises:
        ShapeError: if the bank belongs to another network.
        StatisticsError: if it belongs to other weights.
        OptionError: if it has a single row.

    Source: Atanov, Ashukha, Molchanov, Neklyudov & Vetrov, "Uncertainty Estimation via Stochastic
    Batch Normalization" (2018).

    Departs from the authors' code: plain averages over the rows instead of an exponential average of
    the last ten or so batches; the logarithm is of the variance with the layer's ``eps``.
    """

    has_analytic_kl: ClassVar[bool] = True

    shift_loc: Tensor
    shift_std: Tensor
    log_scale_loc: Tensor
    log_scale_std: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, bank: StatisticsBank) -> None:
        super().__init__(model)
        bank.check(self.space, "guides.StochasticBatchNorm", rows=2)
        bank.check_weights(
            model if isinstance(model, LatentNetwork) else model.network,
            "guides.StochasticBatchNorm",
        )
        like = self.like
        for name, rows in (("shift", bank.shift), ("log_scale", bank.scale.log())):
            self.register_buffer(f"{name}_loc", rows.mean(0).to(like))
            self.register_buffer(f"{name}_std", rows.std(0).clamp(min=_MIN_STD).to(like))
        self.stamp(model)

    def law(self) -> Law:
        """Normal shift and log-normal scale."""
        return Independent(
            normal(self.shift_loc, self.shift_std),
            log_normal(self.log_scale_loc, self.log_scale_std),
        )

    def settings(self) -> dict[str, Any]:
        """None: the moments are in the state."""
        return {}

    @classmethod
    def from_settings(
        cls, model: NormalizationModel, settings: Mapping[str, Any]
    ) -> StochasticBatchNorm:
        """A guide of neutral moments.

        Args:
            model: the model whose latents to sample.
            settings: from :meth:`settings`.
        """
        return cls(model, StatisticsBank.neutral(model.space, 2))
