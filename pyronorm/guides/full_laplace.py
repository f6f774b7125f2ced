"""Laplace's approximation with all correlations."""

from __future__ import annotations

import math

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.devices import check_memory
from pyronorm.errors import OptionError
from pyronorm.guides.curvature import Curvature
from pyronorm.guides.laplace import Laplace
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.model import NormalizationModel

__all__ = ["FullLaplace"]


class FullLaplace(Laplace):
    r"""Laplace's approximation with the whole Gauss-Newton matrix.

    .. math::
        q(z) = \mathcal N\big(\hat z,\; (G + \Lambda)^{-1}\big)

    A matrix of all pairs of latents: for ten thousand channels 1.6 GB in single precision. It needs a
    whole curvature.

    Args:
        model: the model whose latents to sample; see :class:`Laplace` for how to make one of data.

    Raises:
        SizeError: if there is no memory for so many latents.
    """

    root: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__(model)
        size = len(self.loc)
        check_memory(
            f"guides.FullLaplace of {size:,} latents",
            size**2,
            self.loc,
            "Take LowRankLaplace or DiagonalLaplace, which grow with the channels alone.",
        )
        self.register_buffer("root", torch.eye(size).to(self.loc))

    def law(self) -> Law:
        """All latents jointly."""
        return Joint(MultivariateNormal(self.loc, scale_tril=self.root, validate_args=False))

    def covariance(self) -> Tensor:
        """Covariance of shifts and log scales, shape ``(2 * channel, 2 * channel)``."""
        return self.root @ self.root.T

    def output_covariance(self, jacobian: Tensor) -> Tensor:
        """See :meth:`Laplace.output_covariance`."""
        scaled = jacobian @ self.root
        return scaled @ scaled.mT

    @classmethod
    def _kept(cls, curvature: Curvature) -> Curvature:
        if not curvature.is_whole:
            raise OptionError(
                f"guides.FullLaplace: the curvature has {len(curvature.factor)} of "
                f"{len(curvature.mode)} rows. Collect it without a rank, "
                "pyronorm.collect_curvature(model, data), or take LowRankLaplace or DiagonalLaplace."
            )
        return curvature

    def _take(self, kept: Curvature, prior: Tensor) -> float:
        factor = kept.factor.double()
        precision = factor.T @ factor
        precision.diagonal().add_(kept.rest.double() + prior)
        lower, failed = torch.linalg.cholesky_ex(precision)
        if int(failed):
            return math.nan
        root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower))
        if int(failed):
            return math.nan
        self.root.copy_(root)
        return 2 * float(lower.diagonal().log().sum())
