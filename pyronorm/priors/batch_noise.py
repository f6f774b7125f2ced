"""The law of batch noise as a prior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pyro.distributions import Delta, Normal
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.distributions import InverseChi
from pyronorm.errors import OptionError
from pyronorm.latents import LatentSpace
from pyronorm.laws import Independent, Law
from pyronorm.priors.base import Prior
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["BatchNoise", "batch_noise_law"]


@checked
def batch_noise_law(df: Float[Tensor, "*sample channel"]) -> Independent:
    r"""The law of batch noise with a batch size for every channel, differentiable in it.

    .. math::
        \text{shift} \sim \mathcal N(0, 1/n), \qquad
        \text{scale} \sim \sqrt n \,/\, \chi_{n-1}, \qquad \text{independent}

    Args:
        df: :math:`n - 1 > 0`, shape ``(*sample, channel)``.
    """
    std = torch.rsqrt(1 + df)
    shift = Normal(torch.zeros_like(df), std, validate_args=False)
    scale = InverseChi(df, 1 / std, validate_args=False)
    return Independent(shift.to_event(1), scale.to_event(1))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class BatchNoise(Prior):
    r"""The noise that batch normalization with ``batch_size`` independent values would have.

    :math:`\text{shift} \sim \mathcal N(0, 1/n)` and
    :math:`1/\text{scale}^2 \sim \chi^2_{n-1}/n`, independent. With the same law as a guide
    (:class:`pyronorm.guides.BatchNoise`) the KL divergence is zero, and the ELBO is
    the expected log likelihood under the noise of ``n`` values that do not include the example
    itself. Batch normalization's noise does include it, which changes the loss by :math:`O(1/n)`.

    Args:
        batch_size: ``n`` > 1, need not be whole. Large is a strong belief in neutral latents.
        shift: whether the shift is random; else it is 0, and there is noise of the scale alone.
        scale: whether the scale is random; else it is 1. Where one of them is a point there is no
            density, and no guide that makes that one random.

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1, or nothing is random.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    batch_size: float
    shift: bool = True
    scale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch_size(self.batch_size, "priors.BatchNoise")
        if not (self.shift or self.scale):
            raise OptionError(
                "BatchNoise: shift=False and scale=False leave no noise. That is the guide Point."
            )

    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """Normal shift and inverse-chi scale, or a point for one of them."""
        law = batch_noise_law(like.new_full((space.num_channels,), self.batch_size - 1))
        neutral = like.new_zeros(space.num_channels)
        if not self.shift:
            law = replace(law, shift=Delta(neutral, event_dim=1))
        return law if self.scale else replace(law, scale=Delta(neutral + 1, event_dim=1))
