"""Functions of one value: activations, dropout, and what leaves values as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyronorm.propagation.steps import Operation, Step, UnsupportedError
from pyronorm.propagation.tracing import Parameter, Value, leaves
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["OPERATIONS"]


def _relu(step: Step, x: Gaussian) -> Gaussian:
    return moments.leaky_relu_moments(x)


def _leaky_relu(step: Step, x: Gaussian) -> Gaussian:
    return moments.leaky_relu_moments(x, step.option(1, "negative_slope", 0.01))


def _prelu(step: Step, x: Gaussian) -> Gaussian:
    return moments.leaky_relu_moments(x, step.weight(x[0]))


def _absolute(step: Step, x: Gaussian) -> Gaussian:
    return moments.leaky_relu_moments(x, -1.0)


def _relu6(step: Step, x: Gaussian) -> Gaussian:
    return moments.clipped_moments(x, 0.0, 6.0)


def _hardtanh(step: Step, x: Gaussian) -> Gaussian:
    return _clip(x, step.option(1, "min_val", -1.0), step.option(2, "max_val", 1.0))


def _clamp(step: Step, x: Gaussian) -> Gaussian:
    return _clip(x, step.option(1, "min"), step.option(2, "max"))


def _clip(x: Gaussian, low: Any, high: Any) -> Gaussian:
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not all(isinstance(bound, (int, float)) for bound in (low, high)):
        raise UnsupportedError("with bounds that are not numbers")
    if not low < high:
        raise UnsupportedError(f"with the bounds {low} and {high}")
    mean, var = x
    if high == math.inf and low == -math.inf:
        return x
    if high == math.inf:  # low + relu(x - low)
        above, var = moments.leaky_relu_moments((mean - low, var))
        return low + above, var
    if low == -math.inf:
        below, var = moments.leaky_relu_moments((high - mean, var))
        return high - below, var
    return moments.clipped_moments(x, low, high)


def _elementwise(step: Step, x: Gaussian) -> Gaussian:
    if step.module is not None:
        return moments.elementwise_moments(x, partial(type(step.module).forward, step.module))
    args, kwargs = step.call.args[1:], step.call.kwargs
    if any(isinstance(a, (Value, Parameter, Tensor)) for a in leaves((args, kwargs))):
        raise UnsupportedError("with further tensors")
    function = _ELEMENTWISE[step.name]
    return moments.elementwise_moments(x, lambda values: function(values, *args, **kwargs))


def _same(step: Step, x: Gaussian) -> Gaussian:
    return x


def _detach(step: Step, x: Gaussian) -> Gaussian:
    return x[0].detach(), x[1].detach()


def _negative(step: Step, x: Gaussian) -> Gaussian:
    return -x[0], x[1]


def _dropout(step: Step, x: Gaussian) -> Gaussian:
    # A function was seen with training=False if it follows its module's mode.
    always = step.module is None and step.option(2, "training", True)
    active = (step.module or step.place).training or always
    return moments.dropout_moments(x, step.option(1, "p", 0.5)) if active else x


def _rises(step: Step) -> bool:
    return bool(step.option(1, "negative_slope", 0.01) >= 0)


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "exp", "square", "sin", "cos")},
    **{name: getattr(F, name) for name in ("gelu", "silu", "mish", "softplus", "elu", "selu")},
    **{name: getattr(F, name) for name in ("celu", "hardswish", "hardsigmoid", "softsign")},
    **{name: getattr(F, name) for name in ("tanhshrink", "softshrink", "hardshrink")},
    "log_sigmoid": F.logsigmoid,
}
_ELEMENTWISE_MODULES = (
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink),
    nn.Hardshrink,
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# The first record that fits counts: ReLU6 is a Hardtanh.
OPERATIONS = (
    Operation(_relu6, (nn.ReLU6,), ("relu6",), pointwise=True, increasing=True),
    Operation(_hardtanh, (nn.Hardtanh,), ("hardtanh",), pointwise=True, increasing=True),
    Operation(_relu, (nn.ReLU,), ("relu",), pointwise=True, increasing=True),
    Operation(_leaky_relu, (nn.LeakyReLU,), ("leaky_relu",), pointwise=True, increasing=_rises),
    Operation(_prelu, (nn.PReLU,), ("prelu",), pointwise=True),
    Operation(_absolute, (), ("abs", "absolute"), pointwise=True),
    Operation(_clamp, (), ("clamp", "clip"), pointwise=True, increasing=True),
    Operation(_elementwise, _ELEMENTWISE_MODULES, tuple(_ELEMENTWISE), pointwise=True),
    Operation(_negative, (), ("neg", "negative"), pointwise=True),
    Operation(
        _same,
        (),
        ("contiguous", "clone", "to", "float", "double", "half", "bfloat16"),
        pointwise=True,
    ),
    Operation(_detach, (), ("detach",), pointwise=True),
    Operation(
        _dropout,
        _DROPOUTS,
        ("dropout", "dropout1d", "dropout2d", "dropout3d"),
        pointwise=True,
    ),
)
