"""No posterior: the latents at their neutral values."""

from __future__ import annotations

from typing import ClassVar

from pyro.distributions import Delta

from pyronorm.guides.base import Guide
from pyronorm.laws import Independent, Law

__all__ = ["Point"]


class Point(Guide):
    r"""Shift 0 and scale 1, always: :math:`q = \delta`.

    With a batch normalizer this is batch normalization as everybody trains it: the noise is implicit
    in the batches, and the ELBO is the expected log likelihood up to the constant prior density at
    the neutral values. For a plain network, :class:`pyronorm.LatentNetwork` with ``plain=True``, it is
    the only guide, and the ELBO the log likelihood.
    """

    needs_latents: ClassVar[bool] = False
    is_point: ClassVar[bool] = True

    def law_key(self) -> str:
        """That it is neutral, always."""
        return "neutral"

    def law(self) -> Law:
        """Two points."""
        zeros = self.like.new_zeros(self.space.num_channels)
        return Independent(Delta(zeros, event_dim=1), Delta(zeros + 1, event_dim=1))
