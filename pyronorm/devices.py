"""Tensors between devices: moved without waiting, read with one wait."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["move", "move_to", "read_together"]


def move(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to a device, unless it is there; the host does not wait for copies to a GPU.

    Args:
        x: any tensor.
        device: where it should be.
        dtype: what it should be; None for what it is.
    """
    # A copy to the host is read at once, and MPS loses races with the host.
    queued = x.device.type == "cpu" and device.type not in ("cpu", "mps")
    return x.to(device, dtype, non_blocking=queued)


def move_to(network: nn.Module, x: Tensor) -> Tensor:
    """Copy an input to the device of a network, that of its first parameter or buffer."""
    first = next(chain(network.parameters(), network.buffers()), x)
    return move(x, first.device)


def read_together(values: list[Tensor]) -> list[int]:
    """Read single integers or truth values, with one wait for their device."""
    if not values:
        return []
    device = values[0].device
    return [int(value) for value in torch.stack([v.to(device) for v in values]).tolist()]
