"""Affine maps per channel in one kernel, and the precision that statistics are taken in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["affine", "affine_each", "float32_affine", "full_precision", "under_autocast"]


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply an affine map per channel in one kernel, keeping the dtype of ``x``.

    Args:
        x: shape ``(batch, channel, *spatial)``.
        weight: shape ``(channel,)``, float32 or the dtype of ``x``.
        bias: like ``weight``.
    """
    zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
    # torch 2.11 refuses eps = 0; 1 + 1e-38 is 1
    return F.batch_norm(x, zeros, ones, weight, bias, False, 0.0, 1e-38)


def affine_each(x: Tensor, weight: Tensor, bias: Tensor, *, channel_last: bool = False) -> Tensor:
    """Apply one affine map per example and channel in one pass, keeping the dtype of ``x``.

    Args:
        x: shape ``(batch, channel, *spatial)``, or ``(batch, *spatial, channel)``.
        weight: shape ``(batch or 1, channel)``.
        bias: shape ``(batch or 1, channel)``.
        channel_last: where the channel axis of ``x`` is.
    """
    weight, bias = (_over_positions(p, x.ndim, channel_last) for p in (weight, bias))
    return torch.addcmul(bias, x, weight).to(x.dtype)


def _over_positions(p: Tensor, ndim: int, channel_last: bool) -> Tensor:
    ones = (1,) * (ndim - p.ndim)
    return p.view(p.shape[:1] + ones + p.shape[1:] if channel_last else p.shape + ones)


def float32_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """For an input in half precision, the affine map in float32; otherwise as it is.

    Batch and instance kernels keep their statistics in the precision of the weight, and in that of
    the input if there is none: a mean of 100 would be off by up to 0.25.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return weight, bias
    weight = x.new_ones(x.shape[1], dtype=torch.float32) if weight is None else weight.float()
    return weight, None if bias is None else bias.float()


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of ``x``, where it is on: for statistics."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if under_autocast(device) else nullcontext()


# Looked up once: torch.compile of torch 2.11 cannot trace is_autocast_available.
_AUTOCAST = {d: torch.amp.is_autocast_available(d) for d in ("cpu", "cuda", "xpu", "mps")}


def under_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return _AUTOCAST.get(device, False) and torch.is_autocast_enabled(device)
