"""Values of all processes of a run, for what is computed over them together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gathered", "num_processes"]


def num_processes() -> int:
    """How many processes compute together; 1 unless torch.distributed is in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    r"""The tensors of all processes, stacked in front; all of them have to call this.

    It can be differentiated: the gradient of :math:`\sum_r L_r` over the losses of all processes comes
    back to the process that a tensor is from.

    Args:
        x: of the same shape and dtype in all processes.

    Returns:
        Shape ``(process, *x.shape)``, the same in all processes.
    """
    apply: Any = _Gather.apply
    together: Tensor = apply(x)
    return together


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]
