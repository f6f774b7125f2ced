"""Yes or no."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Independent binary values: :math:`p(y = 1) = \mathrm{sigmoid}(f)`.

    Shape:
        - output: logits ``(batch, *out)``; ``out`` may be empty (one value per example), several
          labels, or pixels
        - y: 0 or 1, ``(batch, *out)``; NaN for a missing value
        - predictive mean (the probability of 1), entropy and mutual information: ``(batch, *out)``
    """

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Bernoulli with all axes after the batch as event dimensions."""
        check_axes("Bernoulli", output, num_sample_dims, at_least=0)
        return per_example(dist.Bernoulli(logits=output, validate_args=False), num_sample_dims)
