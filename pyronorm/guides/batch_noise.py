"""The law of batch noise of a given batch size, with nothing to learn."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyronorm import priors
from pyronorm.checks import checked
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law
from pyronorm.model import NormalizationModel
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["BatchNoise"]


class BatchNoise(Guide):
    r"""The law of batch noise with a fixed batch size, independent in every channel.

    :math:`\text{shift} \sim \mathcal N(0, 1/n)` and :math:`1/\text{scale}^2 \sim \chi^2_{n-1}/n`: what
    batch normalization would inject if each channel saw ``n`` independent Gaussian values. Against
    the prior :class:`pyronorm.priors.BatchNoise` of the same ``n`` the KL divergence is 0; it is
    :class:`~pyronorm.guides.Fixed` with that prior.

    Args:
        model: the model whose latents to sample.
        batch_size: ``n`` > 1, need not be whole. Positions of an image are correlated, so the
            effective size of a convolution layer is between the number of images and the number of
            values.

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    has_analytic_kl: ClassVar[bool] = True

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, batch_size: float) -> None:
        super().__init__(model)
        self.batch_size = check_batch_size(batch_size, "guides.BatchNoise")

    def law(self) -> Law:
        """Normal shift and inverse-chi scale."""
        return priors.BatchNoise(self.batch_size).law(self.space, self.like)

    def get_extra_state(self) -> Tensor:
        """The batch size: the law is this number, so it is a part of the state."""
        return torch.tensor(self.batch_size, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the batch size of a state.

        Raises:
            OptionError: if it is not a finite number above 1.
        """
        self.batch_size = check_batch_size(float(state), "guides.BatchNoise.load_state_dict")
