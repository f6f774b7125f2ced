"""No posterior: the latents at their neutral values."""

from __future__ import annotations

from typing import ClassVar

import pyro
from pyro.distributions import Delta
from torch import Tensor

from pyronorm.guides.base import Guide

__all__ = ["Point"]


class Point(Guide):
    r"""Shift 0 and scale 1, always: :math:`q = \delta`.

    With a batch normalizer this is batch normalization as everybody trains it: the noise is implicit
    in the batches, and the ELBO is the expected log likelihood up to the constant prior density at
    the neutral values. For a plain network, :class:`pyronorm.LatentNetwork` with ``plain=True``, it is
    the only guide, and the ELBO the log likelihood.
    """

    needs_latents: ClassVar[bool] = False

    def sample_sites(self) -> tuple[Tensor, Tensor]:
        """Two Delta sites."""
        zeros = self._like().new_zeros(self.space.num_channels)
        shift = pyro.sample(self.space.shift_site, Delta(zeros, event_dim=1))
        scale = pyro.sample(self.space.scale_site, Delta(zeros + 1, event_dim=1))
        return shift, scale
