"""Laplace's approximation with independent latents."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.devices import check_memory
from pyronorm.guides.curvature import Curvature
from pyronorm.guides.laplace import Laplace
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Independent, Law
from pyronorm.laws.law import log_normal, normal
from pyronorm.model import NormalizationModel

__all__ = ["DiagonalLaplace"]


class DiagonalLaplace(Laplace):
    r"""Laplace's approximation that keeps the diagonal of the Gauss-Newton matrix.

    .. math::
        q(z) = \prod_j \mathcal N\big(\hat z_j,\; 1/(G_{jj} + \Lambda_{jj})\big)

    Its widths are those of each latent *given* all others, so correlated latents come out too narrow,
    as under mean field. It grows with the channels alone. Any curvature will do.

    Args:
        model: the model whose latents to sample; see :class:`Laplace` for how to make one of data.
    """

    has_analytic_kl: ClassVar[bool] = True

    std: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__(model)
        self.register_buffer("std", torch.ones_like(self.loc))

    def law(self) -> Law:
        """Normal shift and log-normal scale."""
        loc, std = self.loc.chunk(2), self.std.chunk(2)
        return Independent(normal(loc[0], std[0]), log_normal(loc[1], std[1]))

    def covariance(self) -> Tensor:
        """Variances of shifts and log scales on the diagonal, ``(2 * channel, 2 * channel)``."""
        check_memory(
            "DiagonalLaplace.covariance", len(self.std) ** 2, self.std, "The attribute std has it."
        )
        return torch.diag(self.std.square())

    def output_covariance(self, jacobian: Tensor) -> Tensor:
        """See :meth:`Laplace.output_covariance`."""
        scaled = jacobian * self.std
        return scaled @ scaled.mT

    @classmethod
    def _kept(cls, curvature: Curvature) -> Curvature:
        return curvature.truncated(0)

    def _take(self, kept: Curvature, prior: Tensor) -> float:
        precision = kept.diagonal.double() + prior
        self.std.copy_(precision.rsqrt())
        return float(precision.log().sum())
