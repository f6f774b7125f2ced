"""Sums and products, of values taken for independent."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.propagation.steps import Operation, Step, UnsupportedError
from pyronorm.propagation.tracing import Parameter, Value
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["OPERATIONS"]


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


OPERATIONS = (
    Operation(_add, (), ("add",), pointwise=True, several=True, independent=True),
    Operation(
        _sub, (), ("sub", "subtract", "rsub"), pointwise=True, several=True, independent=True
    ),
    Operation(_mul, (), ("mul", "multiply"), pointwise=True, several=True, independent=True),
    Operation(_div, (), ("truediv", "true_divide", "div", "divide"), pointwise=True, several=True),
)
