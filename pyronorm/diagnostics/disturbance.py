"""Stochastic normalization disturbance: how far a batch's company moves an example."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.display import displayed
from pyronorm.errors import OptionError, ShapeError
from pyronorm.infer.population import batch_statistics_mode, latent_network
from pyronorm.normalizers import LatentNorm
from pyronorm.randomness import Seed, seed_value

__all__ = ["Disturbance", "normalization_disturbance"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Disturbance:
    r"""Stochastic normalization disturbance at one batch size.

    Attributes:
        batch_size: examples per batch.
        layers: for each layer :math:`\Delta(x)`, shape ``(example,)``.
        output: the same of the network's output.
        dims: for each layer the number of values :math:`d` an example has there.
        output_dim: number of values of the output per example.
    """

    batch_size: Count
    layers: dict[str, Float[Tensor, " example"]]
    output: Float[Tensor, " example"]
    dims: dict[str, int]
    output_dim: int

    @property
    def normalized(self) -> dict[str, float]:
        r"""For each layer :math:`\Delta/\sqrt d`, averaged over the examples.

        Normalized values have variance 1, so this is their noise in standard deviations, comparable
        between layers of different sizes.
        """
        return {
            name: float(delta.mean()) / math.sqrt(self.dims[name])
            for name, delta in self.layers.items()
        }


@torch.no_grad()
@checked
def normalization_disturbance(
    network: nn.Module,
    x: Shaped[Tensor, "example *dims"],
    batch_sizes: Sequence[int] = (4, 8, 16, 32, 64, 128),
    *,
    num_draws: Count = 20,
    seed: Seed = 0,
) -> list[Disturbance]:
    r"""Measure how much the rest of the batch moves an example, layer by layer.

    .. math::
        \Delta(x) = \mathbb E_B \lVert F(X^B; x) - \mathbb E_B F(X^B; x) \rVert_2,
        \qquad x \in B,

    where :math:`F` normalizes without weight and bias what the layer sees in the network, and
    :math:`B` is a random batch, of distinct examples, that contains :math:`x`. Layers before it take
    the statistics of the same batch, so a layer's disturbance holds what it was handed; give a single
    :class:`~pyronorm.LatentNorm` as the network to have it alone. The examples are shuffled into
    batches ``num_draws`` times; the mean over so few draws :math:`s` is too close to them, which the
    factor :math:`\sqrt{s/(s-1)}` mends (exactly so for Gaussian :math:`F`). Normalizers that do not
    use the batch have 0, up to rounding.

    Args:
        network: a converted network with any normalizers, or a LatentNorm; run with batch statistics
            and neutral latents, and not changed.
        x: the examples, which also are the population that batches are drawn from.
        batch_sizes: the sizes to measure.
        num_draws: random batches :math:`s` per example (fewer where the size does not divide the
            number of examples: a rest is left out).
        seed: seeds the batches, apart from torch's own generator.

    Returns:
        One result per batch size.

    Raises:
        OptionError: if ``num_draws`` is below 2, or a batch size is below 1 or above the number of
            examples.

    Source: introduced by Huang, Zhou, Zhu, Liu & Shao, "Iterative Normalization: Beyond
    Standardization towards Efficient Whitening" (CVPR 2019); batch whitening is compared by it in
    Huang et al., "An Investigation into the Stochasticity of Batch Whitening" (CVPR 2020).
    Departs from the paper: we could not confirm how it normalizes; dividing by :math:`\sqrt d`, the
    factor for few draws and the averaging over examples are ours.
    """
    latent = latent_network(network)
    if num_draws < 2:
        raise OptionError(
            f"normalization_disturbance: num_draws must be at least 2, got {num_draws}."
        )
    for size in batch_sizes:
        if not 1 <= size <= len(x):
            raise OptionError(
                f"normalization_disturbance: batch sizes must be from 1 to {len(x)} (the number of "
                f"examples), got {size}."
            )
    x = latent.prepare(x)
    names = dict(zip(latent.layers, latent.space.names, strict=True))
    number = seed_value(seed)
    return [_measure(latent.network, names, x, size, num_draws, number) for size in batch_sizes]


def _measure(
    network: nn.Module,
    names: dict[LatentNorm, str],
    x: Tensor,
    batch_size: Count,
    num_draws: Count,
    seed: int,
) -> Disturbance:
    mean: dict[str, Tensor] = {}
    distance: dict[str, Tensor] = {}
    dims: dict[str, int] = {}
    count = torch.zeros(len(x), device=x.device, dtype=torch.float64)
    for index, values in _runs(network, names, x, batch_size, num_draws, seed):
        count[index] += 1
        for name, value in values.items():
            if name not in mean:
                mean[name] = value.new_zeros(len(x), value.shape[1])
                distance[name], dims[name] = torch.zeros_like(count), value.shape[1]
            mean[name][index] += value
    for total in mean.values():
        total /= count.clamp(min=1)[:, None]
    # A norm needs the mean first: the same batches once more, instead of keeping all values.
    for index, values in _runs(network, names, x, batch_size, num_draws, seed):
        for name, value in values.items():
            distance[name][index] += torch.linalg.vector_norm(value - mean[name][index], dim=1)
    often = count >= 2
    factor = (count * (count - 1)).clamp(min=1).rsqrt()  # sqrt(s / (s - 1)) / s
    delta = {name: (total * factor)[often] for name, total in distance.items()}
    output, output_dim = delta.pop(_OUTPUT), dims.pop(_OUTPUT)
    return Disturbance(batch_size, delta, output, dims, output_dim)


_OUTPUT = ""  # where no layer of a network has its name


def _runs(
    network: nn.Module,
    names: dict[LatentNorm, str],
    x: Tensor,
    batch_size: Count,
    num_draws: Count,
    seed: int,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Which examples were together, and what became of them: (example, value) in float64."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    with batch_statistics_mode(network), _normalized(names, values):
        for _ in range(num_draws):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for index in order.split(batch_size):
                if len(index) == batch_size:
                    values.clear()
                    values[_OUTPUT] = network(x[index]).flatten(1).double()
                    for name, value in values.items():
                        if len(value) != batch_size:
                            raise ShapeError(
                                f"normalization_disturbance: {name or 'the output'} has {len(value)} "
                                f"items on axis 0 for {batch_size} examples; examples must be there."
                            )
                    yield index, values


@contextmanager
def _normalized(names: dict[LatentNorm, str], values: dict[str, Tensor]) -> Iterator[None]:
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, LatentNorm)
        move = layer.channel_last and not layer.normalizer.handles_channel_last
        x = args[0].movedim(-1, 1) if move else args[0]
        y = layer.normalizer.normalize(layer, x, None, None)
        name, flat = names[layer], y.flatten(1).double()
        # A layer that runs at several places has the values of all of them.
        values[name] = torch.cat([values[name], flat], 1) if name in values else flat

    handles = [layer.register_forward_pre_hook(hook) for layer in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
