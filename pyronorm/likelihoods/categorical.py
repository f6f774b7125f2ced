"""Classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.likelihoods.base import Likelihood, Summary, check_axes

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""A class per example, or per position: :math:`p(y = k) = \mathrm{softmax}(f)_k`.

    Shape:
        - output: logits ``(batch, class, *spatial)``, as for
          :func:`torch.nn.functional.cross_entropy`
        - y: integers ``(batch, *spatial)``
        - predictive mean: probabilities ``(batch, *spatial, class)``
        - entropy and mutual information: ``(batch, *spatial)``
    """

    takes_integers: ClassVar[bool] = True

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Categorical with one event dimension per spatial axis."""
        logits = self._logits(output, num_sample_dims)
        distribution = dist.Categorical(logits=logits, validate_args=False)
        spatial = logits.ndim - num_sample_dims - 2
        return distribution.to_event(spatial)  # type: ignore[no-any-return]

    def expected(self, output: Tensor, num_sample_dims: int = 0) -> Tensor:
        """Class probabilities, shape ``(*samples, batch, *spatial, class)``."""
        return torch.softmax(self._logits(output, num_sample_dims), -1)

    def summarize(self, output: Tensor) -> Summary:
        """Average the probabilities; entropies in nats."""
        logits = torch.log_softmax(self._logits(output, 1), -1)
        probabilities = logits.exp()
        mean = probabilities.mean(0)
        entropy = torch.special.entr(mean).sum(-1)
        expected = torch.special.entr(probabilities).sum(-1).mean(0)
        return Summary(mean, mean * (1 - mean), entropy, (entropy - expected).clamp(min=0))

    def _logits(self, output: Tensor, num_sample_dims: int) -> Tensor:
        check_axes("Categorical", output, num_sample_dims, at_least=1)
        return output.movedim(num_sample_dims + 1, -1)
