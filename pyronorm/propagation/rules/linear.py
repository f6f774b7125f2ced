"""Linear layers and convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyronorm.propagation.steps import Operation, Step, UnsupportedError, each
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["OPERATIONS"]


def _linear(step: Step, x: Gaussian) -> Gaussian:
    if len(step.shape) != 2:
        raise UnsupportedError(f"on an input of shape {tuple(step.shape)}; only (batch, channel)")
    return moments.linear_moments(x, step.weight(x[0]), step.bias(x[0]))


def _convolution(step: Step, x: Gaussian) -> Gaussian:
    weight, bias = _kernel(step, x)
    return moments.convolution_moments(x, weight, bias, step.option(6, "groups", 1))


def _transposed(step: Step, x: Gaussian) -> Gaussian:
    weight, bias = _kernel(step, x)
    options = (3, "stride", 1), (7, "dilation", 1)
    stride, dilation = (each(step.option(*option), weight.ndim - 2) for option in options)
    if max(stride) > 1 and max(dilation) > 1:
        raise UnsupportedError("with both a stride and a dilation")
    groups = step.option(6, "groups", 1)
    return moments.transposed_convolution_moments(x, weight, bias, groups, stride)


def _kernel(step: Step, x: Gaussian) -> tuple[Tensor, Tensor | None]:
    weight = step.weight(x[0])
    if weight.ndim != len(step.shape):
        raise UnsupportedError(f"on an input without a batch axis, shape {tuple(step.shape)}")
    return weight, step.bias(x[0])


# The first record that fits counts, so transposed convolutions stand before their parent.
OPERATIONS = (
    Operation(_linear, (nn.Linear,), ("linear",)),
    Operation(
        _transposed,
        (_ConvTransposeNd,),
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    ),
    Operation(_convolution, (_ConvNd,), ("conv1d", "conv2d", "conv3d")),
)
