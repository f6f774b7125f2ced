"""A normal and a log-normal prior."""

from __future__ import annotations

from dataclasses import dataclass

from pyro.distributions import LogNormal, Normal
from torch import Tensor

from pyronorm.checks import Positive
from pyronorm.latents import LatentSpace
from pyronorm.laws import Independent, Law
from pyronorm.priors.base import Prior

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard(Prior):
    r"""Normal shift and log-normal scale around the neutral values.

    :math:`\text{shift} \sim \mathcal N(0, s^2)` and :math:`\log \text{scale} \sim \mathcal N(0, t^2)`.

    Args:
        shift_std: ``s`` > 0, in units of what it is added to, :math:`\hat x`: of the channel's standard
            deviation with batch normalization, and after :func:`pyronorm.standardize_latents`.
        log_scale_std: ``t`` > 0.

    Raises:
        OptionError: if one of them is not positive.
    """

    shift_std: Positive = 1.0
    log_scale_std: Positive = 1.0

    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """Normal shift and log-normal scale."""
        zeros, ones = like.new_zeros(space.num_channels), like.new_ones(space.num_channels)
        shift = Normal(zeros, ones * self.shift_std, validate_args=False)
        scale = LogNormal(zeros, ones * self.log_scale_std, validate_args=False)
        return Independent(shift.to_event(1), scale.to_event(1))
