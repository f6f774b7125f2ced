"""Real values with Gaussian noise."""

from __future__ import annotations

import math

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods.base import Likelihood, Summary, check_axes
from pyronorm.stats.mixture import mixture_entropy

__all__ = ["Normal"]


class Normal(Likelihood):
    r"""Real values with Gaussian noise: :math:`y \sim \mathcal N(f, \sigma^2)`.

    Args:
        std: the noise :math:`\sigma` > 0, in the units of ``y``: a number, or a tensor that
            broadcasts with ``out`` (one noise per output).
        learned: whether :math:`\sigma` is a parameter (its logarithm, starting at ``std``) or given.

    Shape:
        - output: ``(batch, *out)``; ``out`` may be empty, several targets, or pixels
        - y: ``(batch, *out)``, exactly; ``(batch,)`` against an output ``(batch, 1)`` is refused
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if ``std`` is not positive and finite.
    """

    log_std: Tensor

    def __init__(self, std: float | Tensor = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        value = torch.as_tensor(std, dtype=torch.get_default_dtype()).detach().clone()
        if not bool(((value > 0) & value.isfinite()).all()):
            raise OptionError(f"Normal: std must be positive and finite, got {std}.")
        if learned:
            self.log_std = nn.Parameter(value.log())
        else:
            self.register_buffer("log_std", value.log())

    @property
    def std(self) -> Tensor:
        """The noise, in the units of ``y``."""
        return self.log_std.exp()

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Normal with all axes after the batch as event dimensions."""
        check_axes("Normal", output, num_sample_dims, at_least=0)
        noise = self._noise(output.shape[num_sample_dims + 1 :]).expand(output.shape)
        distribution = dist.Normal(output, noise, validate_args=False)
        return distribution.to_event(output.ndim - num_sample_dims - 1)  # type: ignore[no-any-return]

    def expected(self, output: Tensor, num_sample_dims: int = 0) -> Tensor:
        """The output itself."""
        return output

    def summarize(self, output: Tensor) -> Summary:
        r"""Moments and entropy of the Gaussian mixture over draws.

        The variance is :math:`\sigma^2 + \mathrm{Var}_z f` (biased over draws). The entropy of a
        mixture has no closed form; it is computed by Gauss-Hermite quadrature in every component.
        """
        std = self._noise(output.shape[2:]).expand(output.shape[1:])
        variance = std.square() + output.var(0, correction=0)
        entropy = mixture_entropy(output, std)
        noise = std.log() + 0.5 * (1 + math.log(2 * math.pi))
        return Summary(output.mean(0), variance, entropy, (entropy - noise).clamp(min=0))

    def _noise(self, out: torch.Size) -> Tensor:
        try:
            return self.std.expand(out)
        except RuntimeError as error:
            raise ShapeError(
                f"Normal: std of shape {tuple(self.log_std.shape)} does not broadcast to "
                f"outputs of shape {tuple(out)} per example."
            ) from error
