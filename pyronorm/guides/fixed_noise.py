"""Noise of a given batch size, with nothing to learn."""

from __future__ import annotations

from typing import ClassVar

import pyro
from torch import Tensor

from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.priors import batch_noise
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["FixedNoise"]


class FixedNoise(Guide):
    r"""The law of batch noise with a fixed batch size, independent in every channel.

    :math:`\text{shift} \sim \mathcal N(0, 1/n)` and :math:`1/\text{scale}^2 \sim \chi^2_{n-1}/n`: what
    batch normalization would inject if each channel saw ``n`` independent Gaussian values. Against
    the prior :class:`pyronorm.priors.BatchNoise` of the same ``n`` the KL divergence is 0.

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

    def __init__(self, model: NormalizationModel | LatentNetwork, batch_size: float) -> None:
        super().__init__(model)
        self.batch_size = check_batch_size(batch_size, "guides.FixedNoise")

    def sample_sites(self) -> tuple[Tensor, Tensor]:
        """Normal shift and inverse-chi scale."""
        space = self.space
        shift, scale = batch_noise(self.batch_size, space.num_channels, self._like())
        return pyro.sample(space.shift_site, shift), pyro.sample(space.scale_site, scale)
