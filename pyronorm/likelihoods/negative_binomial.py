"""Counts that scatter more than Poisson's."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.parameters import broadcast, positive

__all__ = ["NegativeBinomial"]


class NegativeBinomial(Likelihood):
    r"""Overdispersed counts of mean :math:`\mu = e^f` and variance :math:`\mu + \mu^2/r`.

    A Poisson distribution whose rate has a Gamma distribution of shape :math:`r`; it tends to
    Poisson's for large :math:`r`.

    Args:
        concentration: :math:`r` > 0: a number, or a tensor that broadcasts with ``out``.
        learned: whether :math:`r` is a parameter (its logarithm) or given.

    Shape:
        - output: the logarithm of the mean, ``(batch, *out)``
        - y: counts, floating point or integers, ``(batch, *out)``; NaN for a missing value
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if ``concentration`` is not positive and finite.
    """

    log_concentration: Tensor

    @checked
    def __init__(self, concentration: float | Tensor = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        value = positive("NegativeBinomial", "concentration", concentration).log()
        if learned:
            self.log_concentration = nn.Parameter(value)
        else:
            self.register_buffer("log_concentration", value)

    @property
    def concentration(self) -> Tensor:
        """The shape of the Gamma distribution of the rate."""
        return self.log_concentration.exp()

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Negative binomial with all axes after the batch as event dimensions."""
        where = "NegativeBinomial"
        check_axes(where, output, num_sample_dims, at_least=0)
        r = broadcast(where, "concentration", self.concentration, output, num_sample_dims)
        counts = dist.NegativeBinomial(r, logits=output - r.log(), validate_args=False)
        return per_example(counts, num_sample_dims)
