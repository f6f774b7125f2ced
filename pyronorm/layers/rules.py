"""What each operation does to mean and variance per channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyronorm.layers.base import LatentNorm
from pyronorm.layers.tracing import Call, Parameter, Value, leaves
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["Step", "UnsupportedError", "normalized", "rule_for"]

Rule: TypeAlias = Callable[..., Gaussian]
"""Takes a :class:`Step` and the moments of the inputs that have some."""


class UnsupportedError(Exception):
    """Raised by a rule: what exactly it cannot do."""


@dataclass(frozen=True, eq=False)
class Step:
    """One call, as an operation on moments.

    Attributes:
        call: the call, with arguments and shapes.
        rule: computes moments of the output from those of the inputs.
        module: the module called; None for a function.
        place: the module whose code makes the call.
        owners: modules that hold the parameters among the arguments, by name.
    """

    call: Call
    rule: Rule
    module: nn.Module | None
    place: nn.Module
    owners: dict[str, nn.Module]

    @property
    def shape(self) -> torch.Size:
        """Shape of the first input."""
        return self.call.inputs[0].shape

    @property
    def out_shape(self) -> torch.Size:
        """Shape of the output."""
        return self.call.outputs[0].shape

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """An argument: an attribute of the module, or positional or by keyword of the function."""
        if self.module is not None:
            return getattr(self.module, name)
        if position < len(self.call.args):
            return self.call.args[position]
        return self.call.kwargs.get(name, default)

    def parameter(self, value: Parameter, like: Tensor) -> Tensor:
        """A parameter as it is now, in the precision of the moments."""
        found: Tensor = getattr(self.owners[value.owner], value.attribute)
        return found.to(like.dtype)

    def weight(self, like: Tensor) -> Tensor:
        """The argument ``weight``."""
        value = self._tensor(1, "weight", like)
        if value is None:
            raise UnsupportedError("without a weight")
        return value

    def bias(self, like: Tensor) -> Tensor | None:
        """The argument ``bias``."""
        return self._tensor(2, "bias", like)

    def _tensor(self, position: int, name: str, like: Tensor) -> Tensor | None:
        value = self.option(position, name)
        if isinstance(value, Parameter):
            return self.parameter(value, like)
        if isinstance(value, Value):
            raise UnsupportedError(f"with a computed {name}")
        return None if value is None else value.to(like.dtype)


def rule_for(call: Call, module: nn.Module | None) -> Rule | None:
    """The rule of a call; None if there is none."""
    if module is None:
        return _FUNCTIONS.get(_plain_name(call.function))
    if isinstance(module, LatentNorm):
        return normalized
    for kind, rule in _MODULES.items():
        if isinstance(module, kind):
            return rule
    return None


def _plain_name(function: Any) -> str:
    """The name without the underscores of in-place and operator forms: __iadd__, add_ -> add."""
    name = getattr(function, "__name__", "")
    plain = str(name).strip("_")
    operator = name.startswith("__") and plain[:1] in ("i", "r") and plain[1:] in _OPERATORS
    return plain[1:] if operator else plain


_OPERATORS = ("add", "sub", "mul", "truediv", "div")


def normalized(step: Step, *_: Gaussian) -> Gaussian:
    """Output of a normalization: whatever it takes its statistics from, mean 0 and variance 1."""
    module: Any = step.module
    channels = step.out_shape[1]
    like = next((t for t in (module.weight, module.bias) if t is not None), None)
    if like is not None and like.ndim > 1:
        raise UnsupportedError("with a weight per position")
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
    groups = step.option(6, "groups", 1)
    return moments.convolution_moments(x, step.weight(x[0]), step.bias(x[0]), groups)


def _transposed(step: Step, x: Gaussian) -> Gaussian:
    axes = len(step.shape) - 2
    stride, dilation = (
        _each(step.option(*o), axes) for o in ((3, "stride", 1), (7, "dilation", 1))
    )
    if max(stride) > 1 and max(dilation) > 1:
        raise UnsupportedError("with both a stride and a dilation")
    groups = step.option(6, "groups", 1)
    weight, bias = step.weight(x[0]), step.bias(x[0])
    return moments.transposed_convolution_moments(x, weight, bias, groups, stride)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


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
    low, high = step.option(1, "min_val", -1.0), step.option(2, "max_val", 1.0)
    return moments.clipped_moments(x, low, high)


def _clamp(step: Step, x: Gaussian) -> Gaussian:
    low, high = step.option(1, "min"), step.option(2, "max")
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        raise UnsupportedError("with bounds that are not numbers")
    if low is not None and high is not None:
        return moments.clipped_moments(x, low, high)
    mean, var = x
    if low is not None:  # low + relu(x - low)
        above, var = moments.leaky_relu_moments((mean - low, var))
        return low + above, var
    assert high is not None
    below, var = moments.leaky_relu_moments((high - mean, var))
    return high - below, var


def _elementwise(step: Step, x: Gaussian) -> Gaussian:
    if step.module is not None:
        return moments.elementwise_moments(x, partial(type(step.module).forward, step.module))
    function = step.call.function
    assert function is not None
    if any(
        isinstance(a, (Value, Parameter)) for a in leaves((step.call.args[1:], step.call.kwargs))
    ):
        raise UnsupportedError("with further tensors")
    call = partial(_apply, function, step.call.args[1:], step.call.kwargs)
    return moments.elementwise_moments(x, call)


def _apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    result: Tensor = function(x, *args, **kwargs)
    return result


def _same(step: Step, x: Gaussian) -> Gaussian:
    return x


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


def _average(step: Step, x: Gaussian) -> Gaussian:
    return moments.average_moments(x, _window(step))


def _maximum(step: Step, x: Gaussian) -> Gaussian:
    return moments.maximum_moments(x, round(_window(step)))


def _window(step: Step) -> float:
    """Values that go into one output of a pooling."""
    name = _plain_name(step.call.function) if step.module is None else type(step.module).__name__
    if name.lower().startswith("adaptive"):
        return math.prod(step.shape[2:]) / math.prod(step.out_shape[2:])
    return math.prod(_each(step.option(1, "kernel_size"), len(step.shape) - 2))


def _mean(step: Step, x: Gaussian) -> Gaussian:
    axes = step.option(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    spatial = axes is not None and all(axis % len(step.shape) >= 2 for axis in axes)
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
            value = step.parameter(argument, like)
            aligned = value.ndim in (0, len(step.out_shape)) or len(step.out_shape) == 2
            if value.numel() not in (1, len(like)) or not aligned:
                raise UnsupportedError(f"with a parameter of shape {tuple(value.shape)}")
            value = value.flatten().expand(len(like))
        elif isinstance(argument, (int, float)):
            value = like.new_full(like.shape, float(argument))
        else:
            raise UnsupportedError(f"with an argument of type {type(argument).__name__}")
        result.append((value, torch.zeros_like(value)))
    if len(result) != 2 or len({len(v.shape) for v in step.call.inputs}) != 1:
        raise UnsupportedError(f"of shapes {[tuple(v.shape) for v in step.call.inputs]}")
    if len(step.call.inputs) == 2 and step.call.inputs[0] == step.call.inputs[1]:
        raise UnsupportedError("of a value with itself, which is not independent")
    return result


def _add(step: Step, *known: Gaussian) -> Gaussian:
    (a, v), (b, w) = _operands(step, known)
    alpha = step.call.kwargs.get("alpha", 1)
    return a + alpha * b, v + alpha**2 * w


def _sub(step: Step, *known: Gaussian) -> Gaussian:
    (a, v), (b, w) = _operands(step, known)
    alpha = step.call.kwargs.get("alpha", 1)
    sign = -1 if getattr(step.call.function, "__name__", "") in ("__rsub__", "rsub") else 1
    return sign * (a - alpha * b), v + alpha**2 * w


def _mul(step: Step, *known: Gaussian) -> Gaussian:
    x, y = _operands(step, known)
    return moments.product_moments(x, y)


def _div(step: Step, *known: Gaussian) -> Gaussian:
    name = getattr(step.call.function, "__name__", "")
    if len(known) != 1 or name.startswith("__r") or not isinstance(step.call.args[0], Value):
        raise UnsupportedError("by a value that depends on the data")
    (a, v), (b, _) = _operands(step, known)
    return a / b, v / b.square()


def _cat(step: Step, *known: Gaussian) -> Gaussian:
    if step.option(1, "dim", 0) % len(step.shape) != 1 or len(known) != len(step.call.inputs):
        raise UnsupportedError("along another axis than the channels")
    return torch.cat([mean for mean, _ in known]), torch.cat([var for _, var in known])


def _slice(step: Step, x: Gaussian) -> Gaussian:
    """Indexing of positions."""
    index = step.call.args[1] if isinstance(step.call.args[1], tuple) else (step.call.args[1],)
    full = all(part == slice(None) for part in index[:2]) or index[:1] == (Ellipsis,)
    if not full or step.out_shape[:2] != step.shape[:2]:
        raise UnsupportedError(f"with the index {index}")
    return x


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

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
    (nn.Identity, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d): _same,
    (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d): _same,
    nn.Flatten: _reshape,
    nn.modules.dropout._DropoutNd: _dropout,
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): _average,
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): _average,
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d): _maximum,
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d): _maximum,
    (nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.SELU): _elementwise,
    (nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign): _elementwise,
    (nn.Tanhshrink, nn.Softshrink, nn.Hardshrink): _elementwise,
}

_FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("contiguous", "clone", "detach", "interpolate", "pad", "to", "float"), _same),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average),
    **dict.fromkeys((f"adaptive_avg_pool{d}d" for d in (1, 2, 3)), _average),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _maximum),
    **dict.fromkeys((f"adaptive_max_pool{d}d" for d in (1, 2, 3)), _maximum),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    "add": _add,
    **dict.fromkeys(("sub", "subtract", "rsub"), _sub),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("truediv", "div", "divide"), _div),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("abs", "absolute"), _absolute),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    **dict.fromkeys(("gelu", "silu", "mish", "sigmoid", "tanh", "softplus", "elu"), _elementwise),
    **dict.fromkeys(("selu", "celu", "hardswish", "hardsigmoid", "logsigmoid"), _elementwise),
    **dict.fromkeys(("softsign", "tanhshrink", "exp", "square", "sin", "cos"), _elementwise),
    "linear": _linear,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "mean": _mean,
    "getitem": _slice,
}
