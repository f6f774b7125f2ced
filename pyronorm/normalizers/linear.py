"""Linear and convolution layers as one kind of thing: a weight per output channel."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TRANSPOSED", "by_output", "is_linear"]

TRANSPOSED: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
_LINEAR: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def is_linear(module: nn.Module) -> bool:
    """Whether a :class:`Weight` normalizer can own it: Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d."""
    return isinstance(module, _LINEAR) and any(
        type(module).forward is kind.forward for kind in _LINEAR
    )


def by_output(linear: Any) -> Tensor:
    """The weight with the axes (group, output channel of the group, inputs of it, *kernel)."""
    whole: Tensor = linear.weight
    weight = whole.reshape(getattr(linear, "groups", 1), -1, *whole.shape[1:])
    # A transposed convolution has the axes (input, output of the group, *kernel).
    return weight.transpose(1, 2) if isinstance(linear, tuple(TRANSPOSED)) else weight
