"""Tensors between devices: moved without waiting, read with one wait."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.errors import DeviceError

__all__ = ["device_of", "move", "read_together"]


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


def device_of(where: str, device: torch.device | str) -> torch.device:
    """A device by its name.

    Args:
        where: the function that was called.
        device: a name such as ``"cuda:0"``.

    Raises:
        DeviceError: if torch knows none of that name, or the machine has none.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"{where}: the device {str(device)!r} cannot be used: {reason}") from None
    return found


def read_together(values: list[Tensor]) -> list[int]:
    """Read single integers or truth values, with one wait for their device."""
    if not values:
        return []
    device = values[0].device
    return [int(value) for value in torch.stack([v.to(device) for v in values]).tolist()]
