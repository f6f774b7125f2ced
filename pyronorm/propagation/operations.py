"""All operations that moments can be carried through, and the one that a call is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyronorm.normalizers.base import LatentNorm
from pyronorm.propagation.rules import arithmetic, elementwise, linear, pooling, shapes
from pyronorm.propagation.steps import Operation, Step, UnsupportedError, plain_name
from pyronorm.propagation.tracing import Call
from pyronorm.stats.propagation import Gaussian

__all__ = ["operation_for"]


def operation_for(call: Call, module: nn.Module | None) -> Operation | None:
    """What a call is.

    Args:
        call: a call of a module or function.
        module: the module called; None for a function.

    Returns:
        None for what moments cannot be carried through.
    """
    if module is None:
        return _BY_FUNCTION.get(plain_name(call.function))
    return next((o for o in _OPERATIONS if isinstance(module, o.modules)), None)


def _normalized(step: Step, *_: Gaussian) -> Gaussian:
    """Output of a normalization: whatever it takes its statistics from, mean 0 and variance 1."""
    module: Any = step.module
    channels = step.out_shape[1]
    last = getattr(module, "channel_last", isinstance(module, nn.LayerNorm))
    names = ("gain", "offset") if isinstance(module, LatentNorm) else ("weight", "bias")
    gain, offset = (getattr(module, name) for name in names)
    like = gain if offset is None else offset
    if like is not None and like.ndim > 1:
        raise UnsupportedError("with a weight per position")
    if like is not None and last and len(step.out_shape) > 2:
        raise UnsupportedError(f"with channels on the last axis of {tuple(step.out_shape)}")
    if like is None:
        like = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0))
    weight = like.new_ones(channels) if gain is None else gain
    bias = like.new_zeros(channels) if offset is None else offset
    result = bias, weight.square()
    for name in getattr(module, "then", ()):
        part = module.get_submodule(name)
        operation = operation_for(step.call, part)
        if operation is None:
            raise UnsupportedError(f"with a {type(part).__name__} that belongs to it")
        result = Step(step.call, operation, part, step.place, step.owners).moments(result)
    return result


_NORMS = (LatentNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# Of a layer that owns the linear layer before it this is not true: see Normalizer.owns_linear.
_NORMALIZED = Operation(_normalized, _NORMS, pointwise=True, several=True, begins=True)

_OPERATIONS = (
    _NORMALIZED,
    *linear.OPERATIONS,
    *elementwise.OPERATIONS,
    *shapes.OPERATIONS,
    *pooling.OPERATIONS,
    *arithmetic.OPERATIONS,
)
_BY_FUNCTION = {name: operation for operation in _OPERATIONS for name in operation.functions}
