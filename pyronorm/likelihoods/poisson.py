"""Counts."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["Poisson"]


class Poisson(Likelihood):
    r"""Counts: :math:`y \sim \mathrm{Poisson}(e^f)`.

    Shape:
        - output: the logarithm of the rate, ``(batch, *out)``
        - y: counts, floating point or integers, ``(batch, *out)``; NaN for a missing value
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``
    """

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Poisson with all axes after the batch as event dimensions."""
        check_axes("Poisson", output, num_sample_dims, at_least=0)
        return per_example(dist.Poisson(output.exp(), validate_args=False), num_sample_dims)
