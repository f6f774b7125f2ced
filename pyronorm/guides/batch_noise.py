"""The law of batch noise of a given batch size, with nothing to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm import priors
from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law
from pyronorm.model import NormalizationModel
from pyronorm.priors import Prior
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
            values. It may be changed at any time (:class:`pyronorm.NoiseSchedule`).
        shift: whether the shift is random; else it is 0, and there is noise of the scale alone.
        scale: whether the scale is random; else it is 1.

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1, or nothing is random.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    has_analytic_kl: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        batch_size: float,
        *,
        shift: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__(model)
        self._prior = priors.BatchNoise(
            check_batch_size(batch_size, "guides.BatchNoise"), shift, scale
        )

    @property
    def batch_size(self) -> float:
        """``n``, as it is now."""
        return self._prior.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: float) -> None:
        size = check_batch_size(batch_size, "guides.BatchNoise")
        self._prior = replace(self._prior, batch_size=size)

    @property
    def shift(self) -> bool:
        """Whether the shift is random."""
        return self._prior.shift

    @property
    def scale(self) -> bool:
        """Whether the scale is random."""
        return self._prior.scale

    def law_key(self) -> Prior:
        """The prior of that law."""
        return self._prior

    def law(self) -> Law:
        """Normal shift and inverse-chi scale, or a point for one of them."""
        return self._prior.law(self.space, self.like)

    def get_extra_state(self) -> Tensor:
        """The batch size, and what is random: the law is these numbers, so they are the state."""
        return torch.tensor([self.batch_size, self.shift, self.scale], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the batch size of a state.

        Raises:
            OptionError: if it is not a finite number above 1, or something else is random.
        """
        if not isinstance(state, Tensor) or state.shape != (3,):
            raise OptionError(
                "guides.BatchNoise: the state must be the numbers n, shift and scale, got "
                f"{state!r}. Was it saved by another version?"
            )
        size, *random = state.tolist()
        if random != [self.shift, self.scale]:
            raise OptionError(
                f"guides.BatchNoise: the state is that of shift={bool(random[0])}, "
                f"scale={bool(random[1])}, this guide has shift={self.shift}, scale={self.scale}."
            )
        self.batch_size = check_batch_size(size, "guides.BatchNoise.load_state_dict")
