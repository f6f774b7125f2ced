"""What the normalized layers of a network see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.display import displayed
from pyronorm.errors import ConversionError, DataError
from pyronorm.infer.data import Data, inputs, least_examples
from pyronorm.infer.population import batch_statistics_mode, latent_network
from pyronorm.inputs import run
from pyronorm.latents import LatentSpace
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.randomness import Seed

__all__ = ["InputShape", "input_shape", "watching"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class InputShape:
    """Skewness and excess kurtosis of what the batch layers normalize.

    Attributes:
        space: names the layers and channels.
        skewness: third standardized moment, shape ``(channel,)``; NaN for layers without batch
            statistics and for constant channels.
        kurtosis: fourth standardized moment minus 3, shape ``(channel,)``.
    """

    space: LatentSpace
    skewness: Float[Tensor, " channel"]
    kurtosis: Float[Tensor, " channel"]


@contextmanager
def watching(layers: list[LatentNorm], see: Callable[[LatentNorm, Tensor], None]) -> Iterator[None]:
    """Show the inputs of layers, as (batch, channel, positions), while a network runs."""

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, LatentNorm)
        x = args[0].movedim(-1, 1) if layer.channel_last else args[0]
        see(layer, x.detach().flatten(2) if x.ndim > 2 else x.detach()[..., None])

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
@checked
def input_shape(
    network: nn.Module, data: Data, batch_size: Count = 256, *, seed: Seed = 0
) -> InputShape:
    r"""Measure skewness and kurtosis of the inputs of all batch layers over data.

    :math:`\gamma = \mathbb E[z^3]` and :math:`\kappa = \mathbb E[z^4] - 3` with :math:`z` the input
    standardized by its own mean and variance over the data; the network runs with batch statistics.

    Args:
        network: a converted network, LatentNetwork or NormalizationModel; not changed.
        data: training data, in batches of the size used in training.
        batch_size: examples per batch, where the data do not come in batches.
        seed: seeds the order, apart from torch's own generator.

    Raises:
        ConversionError: if the network has no batch normalizer.
        DataError: if there is no batch.
    """
    latent = latent_network(network)
    layers = batch_layers(latent.network)
    if not layers:
        raise ConversionError(
            f"input_shape: {type(latent.network).__name__} has no batch normalizer."
        )
    centre: dict[LatentNorm, Tensor] = {}
    powers: dict[LatentNorm, Tensor] = {}
    counts: dict[LatentNorm, int] = dict.fromkeys(layers, 0)

    def see(layer: LatentNorm, x: Tensor) -> None:
        x = x.double()
        # Powers about the first batch's mean: about 0 they would cancel.
        origin = centre.setdefault(layer, x.mean((0, 2)))
        z = x - origin[:, None]
        sums = torch.stack([(z**k).sum((0, 2)) for k in range(1, 5)])
        powers[layer] = powers[layer] + sums if layer in powers else sums
        counts[layer] += x.shape[0] * x.shape[2]

    with batch_statistics_mode(latent.network), watching(layers, see):
        least = least_examples(latent)
        for x in inputs(data, latent, batch_size, shuffle=True, seed=seed, least=least):
            run(latent.network, x)
    if not powers:
        raise DataError("input_shape: there is no batch.")
    skewness, kurtosis = {}, {}
    for layer, sums in powers.items():
        m1, m2, m3, m4 = sums / counts[layer]
        var = m2 - m1**2
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        skewness[layer], kurtosis[layer] = third / var**1.5, fourth / var**2 - 3
    return InputShape(latent.space, latent.pack(skewness), latent.pack(kurtosis))
