"""Laplace's approximation that keeps the leading directions of the curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory
from pyronorm.errors import OptionError
from pyronorm.guides.base import TOO_MANY
from pyronorm.guides.curvature import Curvature
from pyronorm.guides.laplace import Laplace
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.laws.gaussian import NarrowedNormal
from pyronorm.model import NormalizationModel

__all__ = ["LowRankLaplace"]


class LowRankLaplace(Laplace):
    r"""Laplace's approximation with a precision of low rank and a diagonal.

    .. math::
        q(z) = \mathcal N\big(\hat z,\; (F^\top F + \mathrm{diag}(r) + \Lambda)^{-1}\big)

    ``F`` has the leading eigenvectors of the Gauss-Newton matrix and ``r`` what they lack of its
    diagonal: the directions that the data determine best are correlated as they should be, the others
    are independent. It needs a curvature with at least one row; its rank is that of the curvature
    (:meth:`Curvature.truncated` makes it less).

    Args:
        model: the model whose latents to sample; see :class:`Laplace` for how to make one of data.
        rank: rows of ``F``.

    Raises:
        OptionError: if there are fewer latents than ``rank``.
        SizeError: if there is no memory for so many latents.
    """

    std: Tensor
    directions: Tensor
    ratio: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, rank: Count = 10) -> None:
        super().__init__(model)
        size = len(self.loc)
        if rank > size:
            raise OptionError(
                f"guides.LowRankLaplace: rank must be between 1 and {size}, got {rank}."
            )
        check_memory(f"guides.LowRankLaplace of {size:,} latents", size * rank, self.loc, TOO_MANY)
        self.rank = rank
        self.register_buffer("std", torch.ones_like(self.loc))
        self.register_buffer("directions", torch.eye(size, rank).to(self.loc))
        self.register_buffer("ratio", self.loc.new_ones(rank))

    def law(self) -> Law:
        """All latents jointly."""
        return Joint(
            NarrowedNormal(self.loc, self.std, self.directions, self.ratio, validate_args=False)
        )

    def covariance(self) -> Tensor:
        """Covariance of shifts and log scales, shape ``(2 * channel, 2 * channel)``."""
        check_memory(
            "LowRankLaplace.covariance",
            len(self.std) ** 2,
            self.std,
            "The attributes std, directions and ratio have all that it holds.",
        )
        return self.output_covariance(torch.eye(len(self.std)).to(self.std))

    def output_covariance(self, jacobian: Tensor) -> Tensor:
        """See :meth:`Laplace.output_covariance`."""
        scaled = jacobian * self.std
        inner = scaled @ self.directions
        narrowed = inner * (1 - self.ratio.square())
        return scaled @ scaled.mT - narrowed @ inner.mT

    @classmethod
    def _kept(cls, curvature: Curvature) -> Curvature:
        if not len(curvature.factor):
            raise OptionError(
                "guides.LowRankLaplace: the curvature is a diagonal. Collect it with a rank, "
                "pyronorm.collect_curvature(model, data, rank=20), or take DiagonalLaplace."
            )
        return curvature

    @classmethod
    def _room(cls, model: NormalizationModel, kept: Curvature) -> LowRankLaplace:
        return cls(model, len(kept.factor))

    def _take(self, kept: Curvature, prior: Tensor) -> float:
        diagonal = kept.rest.double() + prior
        if not bool((diagonal > 0).all()):
            return math.nan
        scaled = kept.factor.double() * diagonal.rsqrt()
        _, values, vectors = torch.linalg.svd(scaled, full_matrices=False)
        ratio = (1 + values.square()).rsqrt()
        self.std.copy_(diagonal.rsqrt())
        self.directions.copy_(vectors.T)
        self.ratio.copy_(ratio)
        return float(diagonal.log().sum() - 2 * ratio.log().sum())
