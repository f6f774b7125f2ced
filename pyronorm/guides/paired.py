"""Shift and log scale of a channel, correlated."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Positive, checked
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law, ScaleGivenShift
from pyronorm.laws.law import log_normal, normal
from pyronorm.model import NormalizationModel

__all__ = ["Paired"]

_MIN_STD = 1e-6


class Paired(Guide):
    r"""A Gaussian over (shift, log scale) for each channel; channels are independent.

    With a Cholesky factor of each channel's covariance and standard normal :math:`e_1, e_2`,

    .. math::
        \text{shift} = m + s\, e_1, \qquad
        \log\text{scale} = u + k\, e_1 + t\, e_2, \qquad
        \mathrm{Cov} = \begin{pmatrix} s^2 & s k \\ s k & k^2 + t^2 \end{pmatrix}.

    Mean and variance of skewed activations are correlated, :math:`\mathrm{Cov}(M, S^2) =
    \kappa_3 / n`, and so are shift and scale: rectified inputs are skewed.

    Parameters, each of shape ``(channel,)``: ``shift_loc`` (m), ``shift_log_std`` (log s),
    ``log_scale_loc`` (u), ``coupling`` (k), ``log_scale_log_std`` (log t). Under
    ``TraceMeanField_ELBO`` the KL divergence is that of the shift, in closed form, plus that of the
    scale *given* the shift, in closed form at the shift drawn: exact by the chain rule when the prior
    has independent shift and scale, and random only through that draw.

    Args:
        model: the model whose latents to sample.
        init_std: initial ``s`` and ``t``; the rest starts at 0.
        neutral: hold the locations: every shift has median 0 and every scale median 1, so only the
            noise is learned. In a pretrained network, whose function is good already, free locations
            overfit the data it was trained on.

    Raises:
        OptionError: if ``init_std`` is not positive.
    """

    has_analytic_kl: ClassVar[bool] = True

    shift_loc: Tensor
    log_scale_loc: Tensor

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        init_std: Positive = 0.03,
        *,
        neutral: bool = False,
    ) -> None:
        super().__init__(model)
        self.init_std, self.neutral = init_std, neutral
        zeros = self._vector(0.0, "loc")
        self._add_location("shift_loc", zeros.clone(), neutral)
        self._add_location("log_scale_loc", zeros.clone(), neutral)
        self.shift_log_std = nn.Parameter(zeros + math.log(init_std))
        self.coupling = nn.Parameter(zeros.clone())
        self.log_scale_log_std = nn.Parameter(zeros + math.log(init_std))

    @classmethod
    @checked
    def from_bank(
        cls,
        model: NormalizationModel | LatentNetwork,
        bank: StatisticsBank,
        *,
        neutral: bool = False,
    ) -> Paired:
        """The means and (unbiased) covariances of a statistics bank, channel by channel.

        Args:
            model: the model whose latents to sample.
            bank: statistics of at least 3 training batches: two are always perfectly correlated.
            neutral: leave the bank's means out; the covariances stay as they are, around them.

        Raises:
            ShapeError: if the bank belongs to another network.
            OptionError: if it has fewer than 3 rows.
        """
        guide = cls(model, neutral=neutral)
        bank.check(guide.space, "guides.Paired.from_bank", rows=3)
        shift, log_scale = bank.shift.double(), bank.scale.double().log()
        std = shift.std(0).clamp(min=_MIN_STD)
        centred = shift - shift.mean(0), log_scale - log_scale.mean(0)
        coupling = (centred[0] * centred[1]).sum(0) / (len(shift) - 1) / std
        rest = (log_scale.var(0) - coupling.square()).clamp(min=_MIN_STD**2)
        with torch.no_grad():
            if not neutral:
                guide.shift_loc.copy_(shift.mean(0))
                guide.log_scale_loc.copy_(log_scale.mean(0))
            guide.shift_log_std.copy_(std.log())
            guide.coupling.copy_(coupling)
            guide.log_scale_log_std.copy_(rest.log() / 2)
        return guide

    def covariance(self) -> Float[Tensor, "channel 2 2"]:
        """Covariance of shift and log scale of each channel."""
        zeros = torch.zeros_like(self.coupling)
        first = torch.stack([self.shift_log_std.exp(), zeros], -1)
        second = torch.stack([self.coupling, self.log_scale_log_std.exp()], -1)
        factor = torch.stack([first, second], -2)
        return factor @ factor.mT

    def law(self) -> Law:
        """Normal shift, and log-normal scale given the shift."""
        std, rest = self.shift_log_std.exp(), self.log_scale_log_std.exp()

        def scale(shift: Tensor) -> Any:
            loc = self.log_scale_loc + self.coupling * (shift - self.shift_loc) / std
            return log_normal(loc, rest)

        def alone() -> Any:
            return log_normal(self.log_scale_loc, torch.hypot(self.coupling, rest))

        return ScaleGivenShift(normal(self.shift_loc, std), scale, alone)
