"""A likelihood at a temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
)

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.likelihoods.base import Likelihood
from pyronorm.likelihoods.mixture import unwrap

__all__ = ["Tempered"]


class Tempered(Likelihood):
    r"""Another likelihood at a temperature :math:`T`: wider for ``T`` > 1, narrower below.

    For classes and binary values logits are divided by it, :math:`p_T(y|f) \propto p(y|f)^{1/T}`. For
    real values the scale of the noise is multiplied by it. Missing values and weights are those of the
    other likelihood. It is what :meth:`~pyronorm.likelihoods.Likelihood.tempered` returns.

    Args:
        likelihood: the other one.
        temperature: ``T`` > 0.

    Raises:
        OptionError: if ``temperature`` is not positive and finite, or if a distribution has none (on
            its first use): counts, say.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017), for
    classes.
    """

    temperature: Tensor

    @checked
    def __init__(self, likelihood: Likelihood, temperature: float | Tensor) -> None:
        super().__init__()
        if not isinstance(likelihood, Likelihood) or likelihood.marginalizes:
            raise OptionError(
                "Tempered: expected a likelihood of independent values, got "
                f"{type(likelihood).__name__}. Others have a method of their own, "
                "likelihood.tempered(temperature)."
            )
        self.likelihood = likelihood
        self.ignore_index, self.ordered = likelihood.ignore_index, likelihood.ordered
        self.register_buffer("temperature", torch.tensor(check_temperature(temperature)))

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """The other likelihood's, at the temperature."""
        return tempered(self.likelihood.distribution(output, num_sample_dims), self.temperature)

    def observed(self, y: Tensor) -> Tensor | None:
        """As the other likelihood says."""
        return self.likelihood.observed(y)

    def weights(self, y: Tensor) -> Tensor | None:
        """As the other likelihood says."""
        return self.likelihood.weights(y)

    def tempered(self, temperature: float | Tensor) -> Likelihood:
        """Temperatures multiply."""
        return Tempered(self.likelihood, float(self.temperature) * check_temperature(temperature))

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={float(self.temperature):.4g}"


def check_temperature(temperature: float | Tensor) -> float:
    """A temperature as a number.

    Raises:
        OptionError: if it is not positive and finite.
    """
    try:
        value = float(temperature)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not 0 < value < math.inf:
        raise OptionError(f"temperature: must be a positive finite number, got {temperature}.")
    return value


def tempered(distribution: Distribution, temperature: Tensor) -> TorchDistributionMixin:
    """A distribution at a temperature, see :class:`Tempered`.

    Args:
        distribution: the distribution.
        temperature: positive.

    Raises:
        OptionError: if it has no temperature.
    """
    found: Any
    if isinstance(distribution, Independent):
        found = tempered(distribution.base_dist, temperature)
        return found.to_event(distribution.reinterpreted_batch_ndims)  # type: ignore[no-any-return]
    given: Any = distribution
    if isinstance(given, (Categorical, Bernoulli)):
        kind = dist.Categorical if isinstance(given, Categorical) else dist.Bernoulli
        found = kind(logits=given.logits / temperature, validate_args=False)
    elif isinstance(given, StudentT):
        found = dist.StudentT(given.df, given.loc, given.scale * temperature, validate_args=False)
    elif isinstance(given, (Normal, Laplace, Cauchy)):
        kind = getattr(dist, type(given).__name__)
        found = kind(given.loc, given.scale * temperature, validate_args=False)
    elif isinstance(given, LowRankMultivariateNormal):
        factor, diagonal = given.cov_factor * temperature, given.cov_diag * temperature.square()
        found = dist.LowRankMultivariateNormal(given.loc, factor, diagonal, validate_args=False)
    elif isinstance(given, MultivariateNormal):
        tril = given.scale_tril * temperature
        found = dist.MultivariateNormal(given.loc, scale_tril=tril, validate_args=False)
    else:
        raise OptionError(
            f"temperature: {type(unwrap(distribution)).__name__} has none; classes, binary values and "
            "real values with a scale have one (Categorical, Bernoulli, Normal, StudentT, Laplace, "
            "Cauchy, MultivariateNormal)."
        )
    return found  # type: ignore[no-any-return]
