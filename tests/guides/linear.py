"""A network that is linear in its shifts and log scales, so that its posterior is known.

The normalization layer runs on inputs of 0 and 1, where it gives w e^u (x + s) + b for the
standardized x: their difference gives u, their ratio s. A linear map of both follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyronorm import NormalizationModel, convert
from pyronorm.likelihoods import Likelihood
from pyronorm.normalizers import Population
from pyronorm.priors import Prior


class LinearInLatents(nn.Module):
    """Inputs are matrices, (batch, out, 2 * channel); outputs their products with the latents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False, eps=0.0)
        self.norm.num_batches_tracked.fill_(1)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(len(x), self.channels)
        low, high = self.norm(zeros), self.norm(zeros + 1)
        latents = torch.cat([low / (high - low), (high - low).log()], -1)
        return torch.einsum("nkd,nd->nk", x, latents)


def linear_model(
    likelihood: Likelihood, num_data: int, prior: Prior, channels: int = 3
) -> NormalizationModel:
    network = convert(LinearInLatents(channels), Population()).double()
    return NormalizationModel(network, likelihood, num_data, prior).double()
