r"""Inverse square roots of covariance matrices, which whiten (ZCA).

With a covariance :math:`\Sigma`, the vector :math:`\Sigma^{-1/2}(x - \mu)` has the covariance 1. Of
all matrices that whiten, the symmetric one changes the vector least (zero-phase component analysis).

Source: Huang, Yang, Lang & Deng, "Decorrelated Batch Normalization" (CVPR 2018), for ZCA among the
matrices that whiten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, check_fields

__all__ = ["Eigen", "InverseRoot", "Newton", "centre_and_covary"]


class InverseRoot(ABC):
    r"""A way to compute the inverse square root :math:`\Sigma^{-1/2}` of covariance matrices."""

    @abstractmethod
    def __call__(self, cov: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
        r"""Return :math:`\Sigma^{-1/2}`, differentiably.

        Args:
            cov: symmetric positive definite matrices, shape ``(*batch, dim, dim)``.
        """


@dataclass(frozen=True)
class Newton(InverseRoot):
    r"""Newton's iteration, an approximation from below that needs only matrix products.

    .. math::
        \Sigma_N = \Sigma / \operatorname{tr} \Sigma, \quad P_0 = 1, \quad
        P_k = \tfrac12 (3 P_{k-1} - P_{k-1}^3 \Sigma_N), \quad
        \Sigma^{-1/2} \approx P_T / \sqrt{\operatorname{tr} \Sigma}

    The number of steps is part of the function. Along an eigenvector of :math:`\Sigma` with the
    fraction :math:`r` of the trace, the whitened variance starts at :math:`v_0 = r` and becomes
    :math:`v_k = v_{k-1} (3 - v_{k-1})^2 / 4 < 1`: at first 9/4 as much in each step, then quadratic
    convergence to 1. So directions of little variance stay small, instead of being blown up: five
    steps bring :math:`r = 1/16` to 0.97, :math:`r = 1/64` to 0.59 and :math:`r = 1/1000` to 0.06.

    Args:
        iterations: number of steps ``T``.

    Source: Huang, Zhou, Zhu, Liu & Shao, "Iterative Normalization: Beyond Standardization towards
    Efficient Whitening" (CVPR 2019), algorithm 1.

    Departs from the paper: computed as :math:`P_k = P_{k-1} M_k`, :math:`Y_k = M_k Y_{k-1}` with
    :math:`M_k = (3 - Y_{k-1} P_{k-1})/2` and :math:`Y_0 = \Sigma_N`. That gives the same :math:`P_k` at
    the same cost, and is stable (Higham, "Functions of Matrices", chapter 6). As it is written
    above, the iteration amplifies rounding errors at each step: in float32 and with a condition
    number of 100 in 8 dimensions, ten steps leave no correct digit.
    """

    iterations: Count = 5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, cov: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
        """Iterate, in all matrices together."""
        trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        one = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        y = cov / trace
        step = 1.5 * one - 0.5 * y
        p = step
        for _ in range(self.iterations - 1):
            y = step @ y
            step = 1.5 * one - 0.5 * (y @ p)
            p = p @ step
        return p / trace.sqrt()


@dataclass(frozen=True)
class Eigen(InverseRoot):
    r"""Eigendecomposition: :math:`U \Lambda^{-1/2} U^\top`, exact up to rounding.

    The derivative along :math:`H` in the eigenbasis is (Daleckii & Krein)

    .. math::
        \left(U^\top\, \mathrm d \Sigma^{-1/2}\, U\right)_{ij} =
        \frac{-1}{\sqrt{\lambda_i \lambda_j} (\sqrt{\lambda_i} + \sqrt{\lambda_j})}
        \left(U^\top H U\right)_{ij} ,

    which is finite for equal eigenvalues, unlike that of the eigenvectors
    (:math:`1/(\lambda_i - \lambda_j)`). First and second derivatives are exact, in every mode of
    differentiation. Eigenvalues below the rounding error of the largest one are raised to it.

    Source: Higham, "Functions of Matrices" (SIAM 2008), theorem 3.11.
    """

    def __call__(self, cov: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
        """Decompose all matrices together."""
        values, vectors = torch.linalg.eigh(cov.detach())
        rounding = torch.finfo(cov.dtype).eps * cov.shape[-1]
        std = torch.maximum(values, rounding * values[..., -1:]).sqrt()
        root: Tensor = (vectors / std[..., None, :]) @ vectors.mT
        # That is a constant. The derivatives of W come from Newton steps for W cov W = 1 that start
        # at the solution: they change no value. A step with the fixed derivative W -> W R + R W,
        # R = cov^(1/2), makes one more order of derivatives exact; two allow for double backward.
        sums = std[..., :, None] + std[..., None, :]
        for _ in range(2):
            product = root @ cov @ root
            change = vectors.mT @ (product - product.detach()) @ vectors
            root = root - vectors @ (change / sums) @ vectors.mT
        return root


def centre_and_covary(
    rows: Float[Tensor, "part group dim value"],
) -> tuple[
    Float[Tensor, "part group dim value"],
    Float[Tensor, "group dim"],
    Float[Tensor, "group dim dim"],
]:
    r"""Centre vectors, and give their mean and *biased* covariance in each group.

    :math:`\mu = \frac1n \sum x`, :math:`\Sigma = \frac1n \sum (x - \mu)(x - \mu)^\top` over all parts
    and values, in two passes, so that a mean far from 0 costs no digits. Differentiable.

    Args:
        rows: the ``dim`` components of the vectors of each group, ``part * value`` vectors in all.

    Returns:
        ``rows`` minus mean; the means; the covariances (divisor ``part * value``).
    """
    count = rows.shape[0] * rows.shape[3]
    mean = rows.sum((0, 3)) / count
    centred = rows + (-mean[..., None])  # a difference would negate its whole gradient
    return centred, mean, (centred @ centred.mT).sum(0) / count
