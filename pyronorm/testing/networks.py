"""Small networks, data and latents for the checks: unequal sizes, very different channels."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.latents import LatentNetwork

__all__ = [
    "BATCH",
    "CHANNELS",
    "Pure",
    "batch_norm",
    "data",
    "identity",
    "latents",
    "layout",
    "modes",
    "original",
    "settle",
    "transformer_layer",
]

BATCH, CHANNELS, CLASSES = 8, 6, 3

_SHAPES = ((5,), (3, 7), (3, 4, 5), (3, 2, 4, 5))  # of an example, by the number of spatial axes
_LAYOUTS = ("", ", length", ", height, width", ", depth, height, width")
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layout(dims: int) -> str:
    """Name an input with that many spatial axes, for messages."""
    return f"a (batch, channel{_LAYOUTS[dims]}) input"


def data(
    dims: int, batch: int = BATCH, channels: int | None = None, single: bool = False
) -> Tensor:
    """Draw a batch of inputs in float64, with ``single`` of one position."""
    shape = _SHAPES[dims]
    positions = (1,) * dims if single else shape[1:]
    return torch.randn(batch, channels or shape[0], *positions, dtype=torch.double)


def batch_norm(channels: int, dims: int, eps: float, affine: bool) -> nn.Module:
    """Torch's batch normalization; after one batch its statistics are those of this batch."""
    return _NORM[dims](channels, eps=eps, affine=affine, momentum=None)


def original(
    dims: int,
    *,
    deep: bool = False,
    affine: bool = True,
    eps: float = 1e-5,
    layer: Callable[[int, int, float, bool], nn.Module] = batch_norm,
) -> nn.Sequential:
    """Build a network with batch normalization or another layer, in float64, weights at random.

    A linear layer whose channels have very different means and scales, and its normalization; with
    ``deep`` the same again and a classifier behind it.
    """

    def normalized(inputs: int) -> tuple[nn.Module, nn.Module]:
        kernel: Any = {} if dims == 0 else {"kernel_size": 3, "padding": 1}
        linear: Any = _LINEAR[dims](inputs, CHANNELS, **kernel)
        with torch.no_grad():
            factors = torch.logspace(-1, 1, CHANNELS)
            linear.weight.mul_(factors.view(-1, *(1,) * (linear.weight.ndim - 1)))
            linear.bias.copy_(torch.linspace(-20, 30, CHANNELS))
        return linear, layer(CHANNELS, dims, eps, affine)

    first = normalized(_SHAPES[dims][0])
    layers = OrderedDict[str, nn.Module](linear1=first[0], norm1=first[1])
    if deep:
        second = normalized(CHANNELS)
        positions = math.prod(_SHAPES[dims][1:])
        layers.update(act1=nn.ReLU(), linear2=second[0], norm2=second[1], act2=nn.ReLU())
        layers.update(flatten=nn.Flatten(), head=nn.Linear(CHANNELS * positions, CLASSES))
    return _randomized(nn.Sequential(layers))


def identity(
    dims: int, layer: Callable[[int, int, float, bool], nn.Module] = batch_norm
) -> nn.Sequential:
    """Build a linear layer that hands its input through, and its normalization."""
    kernel: Any = {} if dims == 0 else {"kernel_size": 1}
    linear: Any = _LINEAR[dims](CHANNELS, CHANNELS, **kernel)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(CHANNELS).view(linear.weight.shape))
        linear.bias.zero_()
    layers = OrderedDict[str, nn.Module](linear1=linear, norm1=layer(CHANNELS, dims, 1e-5, True))
    return _randomized(nn.Sequential(layers))


def transformer_layer(bias: bool) -> tuple[nn.Sequential, Tensor]:
    """A linear layer and torch's layer normalization over the last axis, and inputs for them."""
    layers = OrderedDict[str, nn.Module](
        linear1=nn.Linear(5, CHANNELS), norm1=nn.LayerNorm(CHANNELS, bias=bias)
    )
    return _randomized(nn.Sequential(layers)), torch.randn(BATCH, 7, 5, dtype=torch.double)


def _randomized(network: nn.Sequential) -> nn.Sequential:
    for name, module in network.named_children():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if name.startswith("norm") and isinstance(weight, Tensor):
            nn.init.uniform_(weight, 0.5, 1.5)
            if isinstance(bias, Tensor):
                nn.init.normal_(bias)
    return network.double()


@torch.no_grad()
def settle(network: nn.Module, x: Tensor) -> None:
    """Give torch's batch normalization the statistics of ``x``."""
    network.train()(x)


def latents(network: LatentNetwork, *batch: int) -> tuple[Tensor, Tensor]:
    """Draw shifts and scales of shape ``(*batch, channel)``, in the network's precision."""
    size = (*batch, network.space.num_channels)
    like = network.like
    return torch.randn(size).to(like) * 0.5, torch.rand(size).to(like) + 0.5


def modes(network: nn.Module) -> Iterator[str]:
    """Put the network in training mode, then in evaluation mode; give their names."""
    for training, name in ((True, "in training mode"), (False, "in evaluation mode")):
        network.train(training)
        yield name


class Pure(nn.Module):
    """A LatentNetwork that doesn't ask whether population statistics belong to the weights.

    ``torch.func.functional_call`` puts other weights in its place; the statistics are constants
    then, and that is meant.
    """

    def __init__(self, network: LatentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Evaluate with one draw for all examples."""
        return self.network._evaluate(x, shift, scale)
