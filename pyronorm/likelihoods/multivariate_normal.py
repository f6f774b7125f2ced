"""Vectors of real values with correlated Gaussian noise."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.parameters import positive
from pyronorm.likelihoods.tempered import check_temperature

__all__ = ["MultivariateNormal"]


class MultivariateNormal(Likelihood):
    r"""Several targets with correlated noise.

    :math:`y \sim \mathcal N(f, W W^\top + \mathrm{diag}(s^2))`. The covariance is one for all
    examples and positions; positions are independent. The targets are on the last axis: of a network
    with channels on axis 1, ``output=lambda f: f.movedim(1, -1)`` of the model moves them there. Targets
    that are missing are integrated out: the log likelihood is that of the observed ones, with their
    correlations.

    Args:
        std: :math:`s` > 0, one for each target, in the units of ``y``.
        factor: :math:`W`, shape ``(target, rank)``.
        learned: whether both are parameters (:math:`\log s` and :math:`W`) or given.

    Shape:
        - output: ``(batch, *positions, target)``
        - y: the same; NaN for a missing value
        - predictive mean and variance: the same
        - entropy and mutual information: ``(batch, *positions)``, of all targets together

    Raises:
        OptionError: if ``std`` is not positive and finite, or a column of a learned ``factor`` is 0,
            where its gradient is 0 as well.
        ShapeError: if their shapes do not fit.
    """

    marginalizes = True

    log_std: Tensor
    factor: Tensor

    @checked
    def __init__(self, std: Tensor, factor: Tensor, *, learned: bool = False) -> None:
        super().__init__()
        if std.ndim != 1 or factor.ndim != 2 or len(factor) != len(std):
            raise ShapeError(
                "MultivariateNormal: expected std of shape (target,) and factor of shape (target, "
                f"rank), got {tuple(std.shape)} and {tuple(factor.shape)}."
            )
        log_std = positive("MultivariateNormal", "std", std).log()
        factor = factor.detach().to(log_std.dtype).clone()
        if not bool(factor.isfinite().all()):
            raise OptionError("MultivariateNormal: factor must be finite.")
        if learned and not bool(factor.any(0).all()):
            raise OptionError(
                "MultivariateNormal: a column of a learned factor is 0, and so is its gradient: start "
                "elsewhere, for example at small random values."
            )
        for name, value in (("log_std", log_std), ("factor", factor)):
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def std(self) -> Tensor:
        """The noise that is every target's own, shape ``(target,)``."""
        return self.log_std.exp()

    @property
    def covariance(self) -> Tensor:
        """Covariance of the noise, shape ``(target, target)``."""
        return self.factor @ self.factor.T + torch.diag_embed((2 * self.log_std).exp())

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Normal over the last axis."""
        self._check_output(output, num_sample_dims)
        variance = (2 * self.log_std).exp()
        single = dist.LowRankMultivariateNormal(output, self.factor, variance, validate_args=False)
        return per_example(single, num_sample_dims)

    def observe(
        self, output: Tensor, y: Tensor, num_sample_dims: int = 0
    ) -> tuple[TorchDistributionMixin, Tensor]:
        r"""The marginal distribution of the observed targets.

        A missing target is made independent, of variance :math:`1/2\pi`, and put at its mean, where its
        log density is 0.
        """
        observed = ~y.isnan()
        self._check_output(output, num_sample_dims)
        factor = self.factor * observed[..., None]
        variance = torch.where(observed, (2 * self.log_std).exp(), 1 / (2 * torch.pi))
        mean = torch.where(observed, output, 0.0)
        marginal = dist.LowRankMultivariateNormal(mean, factor, variance, validate_args=False)
        return per_example(marginal, num_sample_dims), torch.where(observed, y, 0.0)

    def tempered(self, temperature: float | Tensor) -> MultivariateNormal:
        """Noise that is so many times as wide, given instead of learned."""
        value = check_temperature(temperature)
        return MultivariateNormal(self.std * value, self.factor * value)

    def _check_output(self, output: Tensor, num_sample_dims: int) -> None:
        check_axes("MultivariateNormal", output, num_sample_dims, at_least=1)
        if output.shape[-1:] != self.log_std.shape:
            raise ShapeError(
                "MultivariateNormal: expected an output of shape (batch, ..., "
                f"{len(self.log_std)}), got {tuple(output.shape)} with {num_sample_dims} sample axes in "
                "front."
            )
