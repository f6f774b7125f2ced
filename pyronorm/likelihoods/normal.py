"""Real values with Gaussian noise."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.parameters import broadcast, positive

__all__ = ["Normal"]


class Normal(Likelihood):
    r"""Real values with Gaussian noise: :math:`y \sim \mathcal N(f, \sigma^2)`.

    Args:
        std: the noise :math:`\sigma` > 0, in the units of ``y``: a number, or a tensor that
            broadcasts with ``out`` (one noise per output).
        learned: whether :math:`\sigma` is a parameter (its logarithm, starting at ``std``) or given.

    Shape:
        - output: ``(batch, *out)``; ``out`` may be empty, several targets, or pixels
        - y: ``(batch, *out)``, exactly; ``(batch,)`` against an output ``(batch, 1)`` is refused. NaN
          for a missing value
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if ``std`` is not positive and finite.
    """

    log_std: Tensor

    @checked
    def __init__(self, std: float | Tensor = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        value = positive("Normal", "std", std)
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
        noise = broadcast("Normal", "std", self.std, output, num_sample_dims)
        return per_example(dist.Normal(output, noise, validate_args=False), num_sample_dims)
