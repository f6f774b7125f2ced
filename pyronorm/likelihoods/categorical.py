"""Classes."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""A class per example, or per position: :math:`p(y = k) = \mathrm{softmax}(f)_k`.

    Args:
        ignore_index: the class that stands for a missing one, as for
            :func:`torch.nn.functional.cross_entropy`; None if none is missing.

    Shape:
        - output: logits ``(batch, class, *spatial)``, as for
          :func:`torch.nn.functional.cross_entropy`
        - y: integers ``(batch, *spatial)``
        - predictive mean: probabilities ``(batch, *spatial, class)``
        - entropy and mutual information: ``(batch, *spatial)``
    """

    def __init__(self, *, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Categorical with one event dimension per spatial axis."""
        check_axes("Categorical", output, num_sample_dims, at_least=1)
        logits = output.movedim(num_sample_dims + 1, -1)
        return per_example(dist.Categorical(logits=logits, validate_args=False), num_sample_dims)
