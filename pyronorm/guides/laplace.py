"""What Laplace's approximations have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from pyronorm.checks import Positive, checked
from pyronorm.errors import DataError, OptionError
from pyronorm.guides.base import Guide
from pyronorm.guides.curvature import Curvature
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.stats.search import minimize_positive

__all__ = ["Laplace"]

_Made = TypeVar("_Made", bound="Laplace")
_LOG_2PI = math.log(2 * math.pi)
_SINGULAR = 1e-13  # a precision that is nothing but rounding, relative to the largest


class Laplace(Guide):
    r"""A Gaussian over shifts and log scales around a point, as wide as the curvature there says.

    .. math::
        q(z) = \mathcal N\big(\hat z,\; (G + \Lambda)^{-1}\big), \qquad
        z = (\text{shift}, \log\text{scale})

    :math:`\hat z` and the generalized Gauss-Newton matrix ``G`` of the log likelihood are those of a
    :class:`Curvature`, :math:`\Lambda` is the precision of the prior. Nothing is trained, the
    network stays as it is: what is approximated is the posterior of the latents of *that* network.
    The three classes differ in what they keep of ``G``:
    :class:`~pyronorm.guides.DiagonalLaplace`, :class:`~pyronorm.guides.LowRankLaplace` and
    :class:`~pyronorm.guides.FullLaplace`.

    Made from a model alone, they are standard normal around neutral latents, for a state to load.

    Attributes:
        loc: :math:`\hat z`, shifts first, shape ``(2 * channel,)``.
        prior_precision: the diagonal of :math:`\Lambda`, of the same shape.
        log_marginal_likelihood: Laplace's approximation of the log evidence in nats,
            :math:`\log p(y|\hat z) + \log p(\hat z) + \frac D2\log 2\pi -
            \frac12\log\det(G + \Lambda)`; 0 without data.

    Source: MacKay, "A Practical Bayesian Framework for Backpropagation Networks" (1992); Daxberger
    et al., "Laplace Redux" (NeurIPS 2021), whose names these are.
    """

    loc: Tensor
    prior_precision: Tensor
    log_marginal_likelihood: Tensor

    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__(model)
        like = self.like
        size = 2 * self.space.num_channels
        self.register_buffer("loc", like.new_zeros(size))
        self.register_buffer("prior_precision", like.new_ones(size))
        self.register_buffer("log_marginal_likelihood", like.new_zeros(()))

    @classmethod
    @torch.no_grad()
    @checked
    def from_curvature(
        cls: type[_Made],
        model: NormalizationModel,
        curvature: Curvature,
        prior_precision: Positive | None = None,
    ) -> _Made:
        r"""Laplace's approximation at the point of a curvature.

        Args:
            model: the model that the curvature is of.
            curvature: from :func:`pyronorm.collect_curvature`.
            prior_precision: :math:`\delta` of a Gaussian prior
                :math:`\mathcal N(0, \delta^{-1} I)` of shifts and log scales in place of the
                model's; None for the model's prior, by the negative Hessian of its log density in
                ``z``.

        Raises:
            OptionError: if the prior has hyperparameters, ties latents to each other or bends the
                other way there (then give ``prior_precision``), or the curvature has not the
                structure.
            DataError: if the precision is not positive definite: with a prior that does not say how
                wide, the data have to.
            ShapeError: if the curvature is of another network.
            StatisticsError: if it is of other weights.
        """
        where = f"guides.{cls.__name__}.from_curvature"
        curvature.check(model, where)
        mode = curvature.mode.double()
        if prior_precision is None:
            precision, log_prior = _prior(model, mode, where)
        else:
            precision = torch.full_like(mode, prior_precision)
            log_prior = _log_normal(mode, prior_precision)
        kept = cls._kept(curvature)
        guide = cls._room(model, kept)
        if guide.hyper is not None:
            raise OptionError(f"{where}: {_no_hyper(model)}")
        known = kept.diagonal.double() + precision
        log_det = guide._take(kept, precision)
        if not math.isfinite(log_det) or bool(known.min() <= _SINGULAR * known.max()):
            raise DataError(
                f"{where}: the precision of the latents is not positive definite: neither the data nor "
                "the prior say how wide some latents are. Take a proper prior, or give "
                "prior_precision."
            )
        guide.loc.copy_(mode)
        guide.prior_precision.copy_(precision)
        evidence = curvature.log_likelihood + log_prior + (len(mode) * _LOG_2PI - log_det) / 2
        guide.log_marginal_likelihood.fill_(evidence)
        guide.stamp(model)
        return guide

    @classmethod
    @torch.no_grad()
    @checked
    def from_evidence(cls: type[_Made], model: NormalizationModel, curvature: Curvature) -> _Made:
        r"""As :meth:`from_curvature`, with the prior precision of the largest marginal likelihood.

        :math:`\delta` of the Gaussian prior :math:`\mathcal N(0, \delta^{-1} I)` in place of the
        model's. The point stays where it is, although another prior would move it: to go all the
        way, build the model with ``priors.Standard`` of the deviation :math:`\delta^{-1/2}` and
        collect the curvature again.

        Args:
            model: the model that the curvature is of.
            curvature: from :func:`pyronorm.collect_curvature`.

        Raises:
            DataError: if there is no maximum: at the neutral point the evidence only wants it tighter.
            OptionError: if the curvature has not the structure.
            ShapeError: if the curvature is of another network.
            StatisticsError: if it is of other weights.
        """
        where = f"guides.{cls.__name__}.from_evidence"
        curvature.check(model, where)
        mode = curvature.mode.double()
        kept = cls._kept(curvature)

        def loss(delta: float) -> float:
            return kept.log_det(delta) / 2 - _log_normal(mode, delta)

        best = minimize_positive(
            loss,
            1e-4,
            1e8,
            f"{where}, prior_precision",
            "Give prior_precision to from_curvature, or choose it by validation.",
        )
        return cls.from_curvature(model, curvature, best)

    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance of shifts and log scales, shape ``(2 * channel, 2 * channel)``.

        Raises:
            SizeError: if there is no memory for it.
        """

    @abstractmethod
    def output_covariance(self, jacobian: Tensor) -> Tensor:
        r""":math:`J \Sigma J^\top`, the covariance of a linearized output.

        Args:
            jacobian: ``J`` in shifts and log scales, shape ``(*batch, out, 2 * channel)``.

        Returns:
            Shape ``(*batch, out, out)``.
        """

    @classmethod
    @abstractmethod
    def _kept(cls, curvature: Curvature) -> Curvature:
        """What the structure keeps of a curvature."""

    @classmethod
    def _room(cls: type[_Made], model: NormalizationModel, kept: Curvature) -> _Made:
        """A guide with room for it."""
        return cls(model)

    @abstractmethod
    def _take(self, kept: Curvature, prior: Tensor) -> float:
        """Hold the covariance; return the log determinant of the precision, NaN if it has none."""


def _log_normal(z: Tensor, precision: float) -> float:
    return (len(z) * (math.log(precision) - _LOG_2PI) - precision * float(z.square().sum())) / 2


def _no_hyper(model: NormalizationModel) -> str:
    return (
        f"{model.prior} has hyperparameters, which Laplace's approximation here does not have. Take a "
        "prior without, such as priors.Standard or priors.BatchNoise."
    )


def log_prior_of(model: NormalizationModel, where: str, z: Tensor) -> Tensor:
    """Log density of shifts and log scales under the model's prior, in nats.

    Raises:
        OptionError: if the prior has hyperparameters.
    """
    law = model.prior.law(model.space, z)
    if law.hyper:
        raise OptionError(f"{where}: {_no_hyper(model)}")
    shift, log_scale = z.chunk(2)
    return law.log_prob(shift, log_scale.exp()) + log_scale.sum()


def _prior(model: NormalizationModel, mode: Tensor, where: str) -> tuple[Tensor, float]:
    """The diagonal of the prior's negative Hessian, and its log density."""

    def slope(z: Tensor) -> Tensor:
        gradient: Tensor = torch.func.grad(lambda v: log_prior_of(model, where, v))(z)
        return gradient

    def times(vector: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(slope, (mode,), (vector,))[1]
        return -product

    diagonal = times(torch.ones_like(mode))
    alternate = torch.linspace(-1.0, 2.0, len(mode)).to(mode)
    if not torch.allclose(times(alternate), alternate * diagonal, rtol=1e-4, atol=1e-6):
        raise OptionError(
            f"{where}: {model.prior} ties latents to each other, so its precision is no diagonal. "
            "Give prior_precision."
        )
    if bool((diagonal < 0).any()):
        raise OptionError(
            f"{where}: the log density of {model.prior} bends upwards at the point, so it has no "
            "precision there. Give prior_precision."
        )
    return diagonal, float(log_prior_of(model, where, mode))
