"""A normalizer of your own: filter response normalization, checked and trained.

Run with ``python examples/own_normalizer.py`` (about 20 seconds on two cores); pytest runs the same
checks: ``python -m pytest examples/own_normalizer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.errors import ShapeError
from pyronorm.normalizers import Normalizer, affine_each
from pyronorm.testing import NormalizerConformance, run_checks


@dataclass(frozen=True)
class FilterResponse(Normalizer):
    r"""Divide by the root mean square of each example and channel over all positions.

    .. math:: \hat x = x / \sqrt{\nu^2 + \epsilon}, \qquad \nu^2 = \frac1P \sum_p x_p^2

    Source: Singh & Krishnan, "Filter Response Normalization Layer" (CVPR 2020), eq. 1; without the
    thresholded activation that goes with it in the paper.
    """

    eps: float | None = None  # None takes the converted layer's own

    def normalize(
        self, layer: pn.LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize, with one affine map for all examples; the latents are in it already."""
        weight = x.new_ones(x.shape[1]) if weight is None else weight
        bias = torch.zeros_like(weight) if bias is None else bias
        return self.normalize_each(layer, x, weight[None], bias[None])

    def normalize_each(
        self, layer: pn.LatentNorm, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Normalize, with an affine map for each example."""
        if x[0, 0].numel() < 2:
            raise ShapeError(f"{layer.name}: needs several positions, got {tuple(x.shape)}.")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics in float32 at least
        gain = torch.rsqrt(wide.square().flatten(2).mean(2) + layer.eps)  # (batch, channel)
        return affine_each(x, weight * gain, bias.expand_as(gain))


class Definition(nn.Module):
    """The formula once more, as plainly as possible, to compare with."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        """Normalize one channel of one example after the other."""
        rows = [
            [
                weight * row / (row.square().mean() + self.eps).sqrt() + bias
                for row, weight, bias in zip(example, self.weight, self.bias, strict=True)
            ]
            for example in x
        ]
        return torch.stack([torch.stack(example) for example in rows])


class TestFilterResponse(NormalizerConformance):
    """All that a normalizer has to hold."""

    spatial_dims = (1, 2, 3)
    needs_positions = True

    def make(self, num_channels: int) -> Normalizer:
        """Return the normalizer to check."""
        return FilterResponse()

    def torch_layer(self, num_channels: int, dims: int) -> nn.Module:
        """There is none in torch."""
        return Definition(num_channels)


def main() -> None:
    """Check it, then train a posterior over its statistics."""
    for name, result in run_checks(TestFilterResponse()).items():
        print(f"{name:50s} {result}")

    torch.manual_seed(0)
    data = pn.datasets.load("digits")
    train, test = tuple(data.train), tuple(data.test)
    network = pn.convert(pn.networks.SmallConvNet(), FilterResponse())
    print(network)
    prior = pn.priors.BatchNoise(batch_size=1024)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), len(train[1]), prior)
    guide = pn.guides.MeanField.from_batch_size(model, 1024)
    pn.fit(model, guide, train, epochs=8, batch_size=64, lr=5e-3)
    for name, value in pn.evaluate(model, guide, test, num_samples=16).items():
        print(f"{name:10s} {value:.3f}")


if __name__ == "__main__":
    main()
