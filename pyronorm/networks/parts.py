"""What the networks have in common: convolutions, normalizations, the start."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pyronorm.errors import OptionError

__all__ = ["Norm", "check_dropout", "convolution", "initialize", "make_norm"]

Norm = Callable[[int], nn.Module] | None
"""Makes the normalization of so many channels; None for none."""


def make_norm(norm: Norm, num_channels: int) -> nn.Module:
    """The normalization of so many channels, the identity if there is none."""
    return nn.Identity() if norm is None else norm(num_channels)


def convolution(
    inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """A convolution; with a bias only in a network without normalization, which would cancel it."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm in (None, nn.Identity))


def initialize(network: nn.Module) -> None:
    """Start convolutions with variance 2 / fan-in, biases at 0 (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_dropout(where: str, **rates: float) -> None:
    """Refuse rates of dropout outside of [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise OptionError(f"{where}: {name} must be at least 0 and below 1, got {rate}.")
