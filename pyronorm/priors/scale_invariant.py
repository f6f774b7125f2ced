"""The improper prior that prefers no scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyronorm.distributions import ImproperFlat, ImproperLogUniform
from pyronorm.latents import LatentSpace
from pyronorm.laws import Independent, Law
from pyronorm.priors.base import Prior

__all__ = ["ScaleInvariant"]


@dataclass(frozen=True)
class ScaleInvariant(Prior):
    r"""Flat shift, log-uniform scale: :math:`p(\text{shift}, \text{scale}) \propto 1/\text{scale}`.

    The reference prior of a location-scale family. It is improper: it has no draws, so no prior
    group in ArviZ; autoguides need :func:`pyronorm.init_to_neutral` to start, and NUTS is
    :func:`pyronorm.run_nuts` (Pyro's own draws from the prior first). The KL divergence is minus the
    entropy of the guide, up to a constant, so every guide with free widths is drawn towards wide
    posteriors where the data do not object.
    """

    is_proper: ClassVar[bool] = False

    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """Flat shift and log-uniform scale."""
        zeros = like.new_zeros(space.num_channels)
        shift = ImproperFlat(zeros, validate_args=False)
        scale = ImproperLogUniform(zeros, validate_args=False)
        return Independent(shift.to_event(1), scale.to_event(1))  # type: ignore[no-untyped-call]
