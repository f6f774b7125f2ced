"""On a CPU, a step of torch's optimizers in one kernel, where nobody said how it is to be taken."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["fuse"]


def fuse(optimizer: Optimizer) -> None:
    """Have an optimizer take its steps fused, before its first one.

    The arithmetic is the same up to rounding. Left to itself, torch takes a step on a CPU by a few
    operations for each parameter, two to four times as long.

    Nothing changes unless the optimizer is SGD, Adam or AdamW itself, has no state yet, and was made
    without ``fused``, ``foreach``, ``capturable`` and ``differentiable``; nor where a parameter is
    elsewhere, has no gradient yet (fused SGD fails when momentum begins later for some than for
    others), or one that lies otherwise in memory: the fused kernels take them for alike.

    Args:
        optimizer: with the gradients of its first step.
    """
    if type(optimizer) not in (SGD, Adam, AdamW) or optimizer.state:
        return
    if all(map(_can_be_fused, optimizer.param_groups)):
        for group in optimizer.param_groups:
            group["fused"] = True


def _can_be_fused(group: dict[str, Any]) -> bool:
    chosen = (group["fused"], group["foreach"])
    special = group.get("capturable"), group["differentiable"], isinstance(group["lr"], Tensor)
    return (
        all(choice is None for choice in chosen)
        and not any(special)
        and all(map(_is_plain, group["params"]))
    )


def _is_plain(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return (
        parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and gradient is not None
        and gradient.layout == parameter.layout
        and gradient.dtype == parameter.dtype
        and _strides(gradient) == _strides(parameter)
    )


def _strides(tensor: Tensor) -> list[int]:
    """Of the axes that have more than one place."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
