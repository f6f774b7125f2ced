"""A Gaussian with the moments of a path of training."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory
from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides.base import TOO_MANY, Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.model import NormalizationModel

__all__ = ["SWAG"]

_MIN_STD = 1e-6


class SWAG(Guide):
    r"""Stochastic weight averaging, Gaussian, of shifts and log scales.

    .. math::
        q(z) = \mathcal N\Big(\bar z,\; \tfrac12 \mathrm{diag}(v) + \tfrac{1}{2(K-1)} D D^\top\Big),
        \qquad z = (\text{shift}, \log\text{scale})

    with the mean :math:`\bar z` and the variances ``v`` of the path that SGD takes at a constant rate,
    and the last ``K`` deviations ``D`` of its points from the mean up to then.
    :class:`pyronorm.CollectSWAG` collects them in training. How wide the path is depends on rate and
    batch size, so the width is a posterior's only as far as those were chosen for it. Nothing is
    learned by variational inference.

    Made from a model alone it is standard normal around neutral latents, for a state to load.

    Args:
        model: the model whose latents to sample.
        rank: ``K``, at least 2.

    Raises:
        OptionError: if ``rank`` is below 2.
        SizeError: if there is no memory for so many latents.

    Source: Maddox, Garipov, Izmailov, Vetrov & Wilson, "A Simple Baseline for Bayesian Uncertainty in
    Deep Learning" (NeurIPS 2019), there over all weights.
    """

    loc: Tensor
    variance: Tensor
    deviations: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, rank: Count = 20) -> None:
        super().__init__(model)
        if rank < 2:
            raise OptionError(f"guides.SWAG: rank must be at least 2, got {rank}.")
        size = 2 * self.space.num_channels
        check_memory(f"guides.SWAG of {size:,} latents", size * rank, self.like, TOO_MANY)
        self.rank = rank
        self.register_buffer("loc", self.like.new_zeros(size))
        self.register_buffer("variance", self.like.new_full((size,), 2.0))
        self.register_buffer("deviations", self.like.new_zeros(size, rank))

    @classmethod
    @torch.no_grad()
    @checked
    def from_moments(
        cls,
        model: NormalizationModel | LatentNetwork,
        mean: Float[Tensor, " latent"],
        variance: Float[Tensor, " latent"],
        deviations: Float[Tensor, "latent rank"],
    ) -> SWAG:
        """The Gaussian of given moments.

        Args:
            model: the model whose latents they are of.
            mean: of shifts and log scales, shape ``(2 * channel,)``.
            variance: of the same shape.
            deviations: the last ones, shape ``(2 * channel, rank)``.

        Raises:
            ShapeError: if there are other latents than the model's.
            OptionError: if there are fewer than 2 deviations.
        """
        guide = cls(model, deviations.shape[1])
        for name, value in (("mean", mean), ("variance", variance), ("deviations", deviations)):
            if len(value) != len(guide.loc):
                raise ShapeError(
                    f"guides.SWAG: {name} must have {len(guide.loc)} latents on axis 0, got shape "
                    f"{tuple(value.shape)}."
                )
        guide.loc.copy_(mean)
        guide.variance.copy_(variance)
        guide.deviations.copy_(deviations)
        guide.stamp(model)
        return guide

    def law(self) -> Law:
        """All latents jointly."""
        return Joint(self._gaussian())

    def covariance(self) -> Tensor:
        """Covariance of shifts and log scales, shape ``(2 * channel, 2 * channel)``.

        Raises:
            SizeError: if there is no memory for it.
        """
        check_memory(
            "SWAG.covariance",
            len(self.loc) ** 2,
            self.loc,
            "The attributes variance and deviations have all that it holds.",
        )
        covariance: Tensor = self._gaussian().covariance_matrix
        return covariance

    def _gaussian(self) -> LowRankMultivariateNormal:
        factor = self.deviations / math.sqrt(2 * (self.rank - 1))
        diagonal = (self.variance / 2).clamp(min=_MIN_STD**2)
        return LowRankMultivariateNormal(self.loc, factor, diagonal, validate_args=False)
