"""Real values whose noise the network predicts too."""

from __future__ import annotations

import math

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["HeteroscedasticNormal"]


class HeteroscedasticNormal(Likelihood):
    r"""Real values with Gaussian noise of their own: :math:`y \sim \mathcal N(f_0, \sigma^2)`.

    The network has two outputs per value, :math:`f_0` and the logarithm of the noise,
    :math:`\sigma = \sigma_{\min} + e^{f_1}`.

    Args:
        min_std: :math:`\sigma_{\min}` ≥ 0, in the units of ``y``; above 0 no example can have
            a density without bound.

    Shape:
        - output: ``(batch, 2, *out)``; for ``nn.Linear(…, 2)`` ``out`` is empty, for several targets
          put ``nn.Unflatten(1, (2, targets))`` behind the layer
        - y: ``(batch, *out)``; NaN for a missing value
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if ``min_std`` is negative or not finite.

    Source: Nix & Weigend, "Estimating the mean and variance of the target probability
    distribution" (ICNN 1994).
    """

    @checked
    def __init__(self, min_std: float = 0.0) -> None:
        super().__init__()
        if not 0 <= min_std < math.inf:
            raise OptionError(
                f"HeteroscedasticNormal: min_std must be at least 0 and finite, got {min_std}."
            )
        self.min_std = min_std

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Normal with all axes after the batch, and the two outputs, as event dimensions."""
        check_axes("HeteroscedasticNormal", output, num_sample_dims, at_least=1)
        axis = num_sample_dims + 1
        if output.shape[axis] != 2:
            raise ShapeError(
                "HeteroscedasticNormal: expected an output of shape (batch, 2, ...), mean and log noise "
                f"on axis 1, got {tuple(output.shape)} with {num_sample_dims} sample axes in front."
            )
        mean, log_std = output.unbind(axis)
        std = self.min_std + log_std.exp()
        return per_example(dist.Normal(mean, std, validate_args=False), num_sample_dims)
