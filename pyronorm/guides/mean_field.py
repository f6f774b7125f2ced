"""Independent normal shifts and log-normal scales."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyronorm.checks import Positive, checked
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law
from pyronorm.laws.diagonal import Diagonal
from pyronorm.laws.law import in_full
from pyronorm.model import NormalizationModel
from pyronorm.stats.batch_noise import check_batch_size, log_var_mean, log_var_variance

__all__ = ["MeanField"]


class MeanField(Guide):
    r"""A learned normal shift and log-normal scale for each channel, all independent.

    .. math::
        q = \prod_c \mathcal N(\text{shift}_c; m_c, s_c^2)\,
            \mathcal N(\log \text{scale}_c; u_c, t_c^2)

    Parameters, each of shape ``(channel,)``: ``shift_loc`` (m), ``shift_log_std`` (log s),
    ``log_scale_loc`` (u), ``log_scale_log_std`` (log t). The KL divergence has a closed form for
    every prior of the library.

    Args:
        model: the model whose latents to sample.
        init_std: initial ``s`` and ``t``; the locations start at the neutral values.
        neutral: hold the locations: every shift has median 0 and every scale median 1, so only the
            noise is learned. In a pretrained network, whose function is good already, free locations
            overfit the data it was trained on.

    Raises:
        OptionError: if ``init_std`` is not positive.
    """

    has_analytic_kl: ClassVar[bool] = True

    shift_loc: Tensor
    shift_log_std: nn.Parameter
    log_scale_loc: Tensor
    log_scale_log_std: nn.Parameter

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
        for name in ("shift", "log_scale"):
            self._add_location(f"{name}_loc", self._vector(0.0, name), neutral)
            log_std = self._vector(math.log(init_std), name)
            setattr(self, f"{name}_log_std", nn.Parameter(log_std))

    @classmethod
    @checked
    def from_batch_size(
        cls,
        model: NormalizationModel | LatentNetwork,
        batch_size: float,
        *,
        neutral: bool = False,
    ) -> MeanField:
        r"""Start at the noise of a given batch size, by its moments.

        :math:`s^2 = 1/n`, and ``u``, ``t`` the mean and standard deviation of
        :math:`\log \text{scale} = -\frac12 \log(S^2/\sigma^2)`.

        Args:
            model: the model whose latents to sample.
            batch_size: ``n`` > 1.
            neutral: hold the locations at the neutral values; ``u`` is 0 then.
        """
        n = check_batch_size(batch_size, "guides.MeanField.from_batch_size")
        guide = cls(model, init_std=1 / math.sqrt(n), neutral=neutral)
        with torch.no_grad():
            if not neutral:
                guide.log_scale_loc.fill_(-0.5 * float(log_var_mean(n)))
            guide.log_scale_log_std.fill_(
                math.log(0.5) + 0.5 * math.log(float(log_var_variance(n)))
            )
        return guide

    def law(self) -> Law:
        """Normal shift and log-normal scale."""
        return Diagonal(
            *in_full(self.shift_loc, self.shift_log_std, self.log_scale_loc, self.log_scale_log_std)
        )
