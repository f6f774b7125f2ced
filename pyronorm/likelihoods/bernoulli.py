"""Yes or no."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.likelihoods.base import Likelihood, Summary, check_axes

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Independent binary values: :math:`p(y = 1) = \mathrm{sigmoid}(f)`.

    Shape:
        - output: logits ``(batch, *out)``; ``out`` may be empty (one value per example), several
          labels, or pixels
        - y: 0 or 1 as floating point, ``(batch, *out)``
        - predictive mean, entropy and mutual information: ``(batch, *out)``
    """

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Bernoulli with all axes after the batch as event dimensions."""
        check_axes("Bernoulli", output, num_sample_dims, at_least=0)
        distribution = dist.Bernoulli(logits=output, validate_args=False)
        out = output.ndim - num_sample_dims - 1
        return distribution.to_event(out)  # type: ignore[no-any-return]

    def expected(self, output: Tensor, num_sample_dims: int = 0) -> Tensor:
        """Probabilities of 1, shape ``(*samples, batch, *out)``."""
        return torch.sigmoid(output)

    def summarize(self, output: Tensor) -> Summary:
        """Average the probabilities; entropies in nats."""
        probabilities = torch.sigmoid(output)
        mean = probabilities.mean(0)
        entropy = _entropy(mean)
        information = (entropy - _entropy(probabilities).mean(0)).clamp(min=0)
        return Summary(mean, mean * (1 - mean), entropy, information)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return entropy
