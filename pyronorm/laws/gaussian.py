"""Gaussians whose covariance, or precision, is of low rank and a diagonal."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["LowRankNormal", "NarrowedNormal"]


class LowRankNormal(LowRankMultivariateNormal):
    r"""Pyro's, without waiting for a device to say whether the Cholesky decomposition succeeded.

    Where it failed, for parameters that are not finite or too far apart, densities are NaN.

    Args:
        loc: shape ``(size,)``.
        cov_factor: :math:`F`, shape ``(size, rank)``.
        cov_diag: :math:`d^2`, shape ``(size,)``.
    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor) -> None:
        self.loc, self.cov_factor, self.cov_diag = loc, cov_factor, cov_diag
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        scaled = cov_factor / cov_diag.sqrt()[:, None]
        eye = torch.eye(cov_factor.shape[1], dtype=loc.dtype, device=loc.device)
        factor, failed = torch.linalg.cholesky_ex(torch.addmm(eye, scaled.mT, scaled))
        self._capacitance_tril = torch.where(failed == 0, factor, torch.nan)
        Distribution.__init__(self, torch.Size(), loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        """The same with other batch axes."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        expanded: LowRankNormal = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded


class NarrowedNormal(TorchDistribution):
    r"""Independent normal values, narrowed along a few orthonormal directions.

    .. math::
        z = m + d \odot \big(I - U (I - \mathrm{diag}(r)) U^\top\big) e, \qquad e \sim \mathcal N(0, I)

    A *precision* of low rank and a diagonal, :math:`F^\top F + \mathrm{diag}(p)`, is of that form, as
    a covariance of low rank is of torch's ``LowRankMultivariateNormal``: with the singular values
    :math:`F\,\mathrm{diag}(p)^{-1/2} = W\,\mathrm{diag}(s)\,U^\top` it is :math:`d = p^{-1/2}` and
    :math:`r = (1 + s^2)^{-1/2}`.

    Args:
        loc: ``m``, shape ``(size,)``.
        std: ``d`` > 0, shape ``(size,)``.
        directions: ``U``, orthonormal columns, shape ``(size, rank)``.
        ratio: ``r`` > 0, shape ``(rank,)``.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        std: Tensor,
        directions: Tensor,
        ratio: Tensor,
        validate_args: bool | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008  # immutable
    ) -> None:
        self.loc, self.std, self.directions, self.ratio = loc, std, directions, ratio
        super().__init__(batch_shape, loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NarrowedNormal:
        """The same with other batch axes, independent of each other."""
        return NarrowedNormal(
            self.loc,
            self.std,
            self.directions,
            self.ratio,
            validate_args=False,
            batch_shape=torch.Size(batch_shape),
        )

    @property
    def mean(self) -> Tensor:
        """``m``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances of the components."""
        shrunk = self.directions.square() @ (1 - self.ratio.square())
        return (self.std.square() * (1 - shrunk)).expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  # immutable
        """Draw, differentiable in all arguments."""
        shape = self._extended_shape(torch.Size(sample_shape))
        e = torch.randn(shape, device=self.loc.device, dtype=self.loc.dtype)
        return self.loc + self.std * self._stretch(e, self.ratio - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        e = self._stretch((value - self.loc) / self.std, 1 / self.ratio - 1)
        size = self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (e.square().sum(-1) + size) - self._log_det()

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        size = self.event_shape[0] * (1 + math.log(2 * math.pi))
        return (self._log_det() + 0.5 * size).expand(self.batch_shape)

    def _stretch(self, e: Tensor, by: Tensor) -> Tensor:
        return e + ((e @ self.directions) * by) @ self.directions.mT

    def _log_det(self) -> Tensor:
        return self.std.log().sum() + self.ratio.log().sum()
