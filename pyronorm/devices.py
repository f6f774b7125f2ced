"""Tensors between devices: moved without waiting, read with one wait."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pyronorm.errors import DeviceError, OptionError, SizeError

__all__ = ["available_memory", "check_memory", "device_of", "move", "read_together", "refuse_parts"]


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


def refuse_parts(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors of which this process has but a part: DTensors, and what FSDP flattens.

    Args:
        named: parameters and buffers, with their names.

    Raises:
        OptionError: naming the first.
    """
    for name, tensor in named:
        if hasattr(tensor, "device_mesh") or type(tensor).__name__ == "FlatParameter":
            raise OptionError(
                f"{name or 'the network'} is spread over several processes ({type(tensor).__name__}, of "
                "fully_shard, tensor parallelism or FSDP). Layers are given latents from outside and "
                "read each other's weights, so every process needs the whole network: train with "
                'pyronorm.fit(..., fabric=Fabric(strategy="ddp")).'
            )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where that is not known."""
    if device.type == "cuda":  # what torch holds and does not use is free, too
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    kilobytes = (int(fields.get(name, "0").split()[0]) for name in ("MemAvailable", "SwapFree"))
    return 1024 * sum(kilobytes)


def check_memory(where: str, numbers: int, like: Tensor, fix: str) -> None:
    """Refuse what cannot fit, before half of it is there.

    Args:
        where: what needs the memory, for the message.
        numbers: how many numbers it holds, at least.
        like: gives their dtype and device.
        fix: what to do, for the message.

    Raises:
        SizeError: with the bytes that are needed and that there are.
    """
    needed = numbers * like.element_size()
    if needed < _SMALL:
        return
    available = available_memory(like.device)
    if available is not None and needed > available:
        raise SizeError(
            f"{where}: needs at least {needed / 2**30:.1f} GiB ({numbers:,} numbers), and "
            f"{like.device} has {available / 2**30:.1f} GiB. {fix}"
        )


_SMALL = 2**28  # bytes that need no look at the device
