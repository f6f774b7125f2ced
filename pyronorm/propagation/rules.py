"""What each operation does to mean and variance per channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyronorm.normalizers.base import LatentNorm
from pyronorm.propagation.steps import Rule, Step, UnsupportedError, plain_name
from pyronorm.propagation.tracing import Call, Parameter, Value, leaves
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = [
    "is_maximum",
    "is_pointwise",
    "is_sum",
    "may_follow_maximum",
    "normalized",
    "rule_for",
    "takes_several",
]


def rule_for(call: Call, module: nn.Module | None) -> Rule | None:
    """The rule of a call; None if there is none."""
    if module is None:
        return _FUNCTIONS.get(plain_name(call.function))
    if isinstance(module, LatentNorm):
        return normalized
    for kind, rule in _MODULES.items():
        if isinstance(module, kind):
            return rule
    return None


def is_pointwise(rule: Rule | None, module: nn.Module | None) -> bool:
    """Whether each output value is a function of one value of each input, and of constants."""
    mixes = isinstance(module, LatentNorm) and module.linear is not None
    return rule in _POINTWISE and not mixes


def is_maximum(rule: Rule | None) -> bool:
    """Whether it is a max pooling."""
    return rule is _maximum


def may_follow_maximum(step: Step) -> bool:
    """Whether a step never decreases, so that a max pooling behind it can be done before it."""
    if step.rule is _leaky_relu:
        return bool(step.option(1, "negative_slope", 0.01) >= 0)
    return step.rule in (_relu, _relu6, _hardtanh, _clamp)


def is_sum(rule: Rule | None) -> bool:
    """Whether it adds or multiplies its inputs, taking them for independent."""
    return rule in (_add, _sub, _mul)


def takes_several(rule: Rule | None) -> bool:
    """Whether it has a use for more than one input with moments."""
    return is_sum(rule) or rule in (_div, _cat, normalized)


def normalized(step: Step, *_: Gaussian) -> Gaussian:
    """Output of a normalization: whatever it takes its statistics from, mean 0 and variance 1."""
    module: Any = step.module
    channels = step.out_shape[1]
    last = getattr(module, "channel_last", isinstance(module, nn.LayerNorm))
    like = next((t for t in (module.weight, module.bias) if t is not None), None)
    if like is not None and like.ndim > 1:
        raise UnsupportedError("with a weight per position")
    if like is not None and last and len(step.out_shape) > 2:
        raise UnsupportedError(f"with channels on the last axis of {tuple(step.out_shape)}")
    if like is None:
        like = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0))
    weight = like.new_ones(channels) if module.weight is None else module.weight
    bias = like.new_zeros(channels) if module.bias is None else module.bias
    return bias, weight.square()


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
    stride, dilation = (_each(step.option(*option), weight.ndim - 2) for option in options)
    if max(stride) > 1 and max(dilation) > 1:
        raise UnsupportedError("with both a stride and a dilation")
    groups = step.option(6, "groups", 1)
    return moments.transposed_convolution_moments(x, weight, bias, groups, stride)


def _kernel(step: Step, x: Gaussian) -> tuple[Tensor, Tensor | None]:
    weight = step.weight(x[0])
    if weight.ndim != len(step.shape):
        raise UnsupportedError(f"on an input without a batch axis, shape {tuple(step.shape)}")
    return weight, step.bias(x[0])


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


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


def _reshape(step: Step, x: Gaussian) -> Gaussian:
    """Flattening of positions, among themselves or into the channels."""
    old, new = step.shape, step.out_shape
    if len(new) < 2 or old[0] != new[0] or math.prod(old) != math.prod(new):
        raise UnsupportedError(f"from shape {tuple(old)} to {tuple(new)}")
    if old[1] == new[1]:
        return x
    positions = math.prod(old[2:])
    if len(new) != 2 or new[1] != old[1] * positions:
        raise UnsupportedError(f"from shape {tuple(old)} to {tuple(new)}")
    mean, var = (part[:, None].expand(-1, positions).reshape(-1) for part in x)
    return mean, var


def _pad(step: Step, x: Gaussian) -> Gaussian:
    """Padding of positions, which is not seen; of channels, by a constant."""
    widths = tuple(step.option(1, "padding" if step.module is not None else "pad"))
    axes = len(step.shape) - 2
    channels, batch = widths[2 * axes : 2 * axes + 2], widths[2 * axes + 2 :]
    constant = step.option(2, "mode", "constant") == "constant"
    constant &= step.module is None or isinstance(step.module, nn.modules.padding._ConstantPadNd)
    if any(batch) or any(width < 0 for width in channels) or (any(channels) and not constant):
        raise UnsupportedError(f"by {widths} of shape {tuple(step.shape)}")
    if not any(channels):
        return x
    value = float(step.option(3, "value") or 0)
    mean, var = x
    return F.pad(mean, channels, value=value), F.pad(var, channels)


def _interpolate(step: Step, x: Gaussian) -> Gaussian:
    """Sums of neighbouring positions, with the weights that the interpolation has."""
    mode = step.option(3, "mode", "nearest")
    align, antialias = bool(step.option(4, "align_corners")), bool(step.option(6, "antialias"))
    sizes = step.shape[2:], step.out_shape[2:]
    return moments.interpolation_moments(x, *sizes, mode, align, antialias)


def _average(step: Step, x: Gaussian) -> Gaussian:
    if step.option(6, "divisor_override") is not None:
        raise UnsupportedError("with a divisor_override")
    return moments.average_moments(x, _window(step))


def _maximum(step: Step, x: Gaussian) -> Gaussian:
    """The largest of Gaussian values; then an activation before it, which leaves the order alone.

    Behind a ReLU half of the values are 0, and a Gaussian with their moments has a maximum of about
    the right mean but of a third of the variance.
    """
    y = moments.maximum_moments(x, max(1, round(_window(step))))
    return y if step.activation is None else step.activation.rule(step.activation, y)


def _window(step: Step) -> float:
    """Values that go into one output of a pooling; the harmonic mean where windows differ."""
    if step.name.lower().startswith("adaptive"):
        return moments.adaptive_window(step.shape[2:], step.out_shape[2:])
    return math.prod(_each(step.option(1, "kernel_size"), len(step.shape) - 2))


def _mean(step: Step, x: Gaussian) -> Gaussian:
    axes = step.option(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    spatial = axes and all(axis % len(step.shape) >= 2 for axis in axes)
    if not spatial or len(step.out_shape) < 2:
        raise UnsupportedError(f"over the axes {axes} of shape {tuple(step.shape)}")
    return moments.average_moments(x, math.prod(step.shape[axis] for axis in axes))


def _dropout(step: Step, x: Gaussian) -> Gaussian:
    # A function was seen with training=False if it follows its module's mode.
    always = step.module is None and step.option(2, "training", True)
    active = (step.module or step.place).training or always
    return moments.dropout_moments(x, step.option(1, "p", 0.5)) if active else x


def _operands(step: Step, known: tuple[Gaussian, ...]) -> list[Gaussian]:
    """Both arguments of a sum or product; numbers and parameters have no variance."""
    rest = list(known)
    like = rest[0][0]
    result = []
    for argument in step.call.args[:2]:
        if isinstance(argument, Value):
            result.append(rest.pop(0))
            continue
        if isinstance(argument, Parameter):
            value = _per_channel(step, step.parameter(argument, like), len(like))
        elif isinstance(argument, (int, float)):
            value = like.new_full(like.shape, float(argument))
        else:
            raise UnsupportedError(f"with an argument of type {type(argument).__name__}")
        result.append((value, torch.zeros_like(value)))
    if len(result) != 2 or len({len(v.shape) for v in step.call.inputs}) != 1:
        raise UnsupportedError(f"of shapes {[tuple(v.shape) for v in step.call.inputs]}")
    return result


def _per_channel(step: Step, value: Tensor, channels: int) -> Tensor:
    """A parameter that is broadcast over everything but the channels, which have axis 1."""
    shape = (1,) * (len(step.out_shape) - value.ndim) + value.shape
    if value.numel() > 1 and (shape[1] != channels or value.numel() != channels):
        raise UnsupportedError(f"with a parameter of shape {tuple(value.shape)}")
    return value.flatten().expand(channels)


def _add(step: Step, *known: Gaussian) -> Gaussian:
    (a, v), (b, w) = _operands(step, known)
    alpha = step.call.kwargs.get("alpha", 1)
    return torch.add(a, b, alpha=alpha), torch.add(v, w, alpha=alpha**2)


def _sub(step: Step, *known: Gaussian) -> Gaussian:
    x, y = _operands(step, known)
    (a, v), (b, w) = (y, x) if step.call.function in ("__rsub__", "rsub") else (x, y)
    alpha = step.call.kwargs.get("alpha", 1)
    return torch.sub(a, b, alpha=alpha), torch.add(v, w, alpha=alpha**2)


def _mul(step: Step, *known: Gaussian) -> Gaussian:
    x, y = _operands(step, known)
    return moments.product_moments(x, y)


def _div(step: Step, *known: Gaussian) -> Gaussian:
    reverse = (step.call.function or "").startswith("__r")
    if len(known) != 1 or reverse or not isinstance(step.call.args[0], Value):
        raise UnsupportedError("by a value that depends on the data")
    if step.call.kwargs.get("rounding_mode") is not None:
        raise UnsupportedError("with a rounding_mode")
    (a, v), (b, _) = _operands(step, known)
    return a / b, v / b.square()


def _cat(step: Step, *known: Gaussian) -> Gaussian:
    if step.option(1, "dim", 0) % len(step.shape) != 1:
        raise UnsupportedError("along another axis than the channels")
    return torch.cat([mean for mean, _ in known]), torch.cat([var for _, var in known])


def _slice(step: Step, x: Gaussian) -> Gaussian:
    """Indexing of positions by numbers and slices."""
    index = step.call.args[1] if isinstance(step.call.args[1], tuple) else (step.call.args[1],)
    full = all(part is None or type(part) in (int, slice, type(...)) for part in index)
    if full and index[0] is ...:
        full = sum(part is not None for part in index[1:]) <= len(step.shape) - 2
    else:
        full = full and all(part == slice(None) for part in index[:2])
    if not full or step.out_shape[:2] != step.shape[:2]:
        raise UnsupportedError(f"with the index {index}")
    return x


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_PADS = nn.modules.padding

# The first kind that fits counts, so subclasses stand before their parents.
_MODULES: dict[type[nn.Module] | tuple[type[nn.Module], ...], Rule] = {
    _NORMS: normalized,
    nn.Linear: _linear,
    _ConvTransposeNd: _transposed,
    _ConvNd: _convolution,
    nn.ReLU6: _relu6,
    nn.Hardtanh: _hardtanh,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.Upsample: _interpolate,
    (_PADS._ConstantPadNd, _PADS._ReflectionPadNd): _pad,
    (_PADS._ReplicationPadNd, _PADS._CircularPadNd): _pad,
    nn.Flatten: _reshape,
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d): _dropout,
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): _average,
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): _average,
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d): _maximum,
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d): _maximum,
    (nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.SELU): _elementwise,
    (nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign): _elementwise,
    (nn.Tanhshrink, nn.Softshrink, nn.Hardshrink): _elementwise,
}

_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "exp", "square", "sin", "cos")},
    **{name: getattr(F, name) for name in ("gelu", "silu", "mish", "softplus", "elu", "selu")},
    **{name: getattr(F, name) for name in ("celu", "hardswish", "hardsigmoid", "softsign")},
    **{name: getattr(F, name) for name in ("tanhshrink", "softshrink", "hardshrink")},
    "log_sigmoid": F.logsigmoid,
}

_FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("contiguous", "clone", "to", "float", "double", "half", "bfloat16"), _same),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average),
    **dict.fromkeys((f"adaptive_avg_pool{d}d" for d in (1, 2, 3)), _average),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _maximum),
    **dict.fromkeys((f"adaptive_max_pool{d}d" for d in (1, 2, 3)), _maximum),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    "add": _add,
    **dict.fromkeys(("sub", "subtract", "rsub"), _sub),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("truediv", "true_divide", "div", "divide"), _div),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("abs", "absolute"), _absolute),
    **dict.fromkeys(("neg", "negative"), _negative),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "detach": _detach,
    "linear": _linear,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "pad": _pad,
    "interpolate": _interpolate,
    "mean": _mean,
    "getitem": _slice,
}

_POINTWISE = {
    *(normalized, _relu, _leaky_relu, _prelu, _absolute, _relu6, _hardtanh, _clamp, _elementwise),
    *(_same, _detach, _negative, _reshape, _pad, _dropout, _add, _sub, _mul, _div, _cat, _slice),
}
