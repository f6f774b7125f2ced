"""Values put elsewhere: reshaped, padded, joined, cut out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import padding

from pyronorm.propagation.steps import Operation, Step, UnsupportedError
from pyronorm.stats.propagation import Gaussian

__all__ = ["OPERATIONS"]


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


_PADS = (
    padding._ConstantPadNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    padding._CircularPadNd,
)

OPERATIONS = (
    Operation(
        _reshape,
        (nn.Flatten,),
        ("flatten", "reshape", "view", "squeeze", "unsqueeze"),
        pointwise=True,
    ),
    Operation(_pad, _PADS, ("pad",), pointwise=True),
    Operation(_cat, (), ("cat", "concat", "concatenate"), pointwise=True, several=True),
    Operation(_slice, (), ("getitem",), pointwise=True),
)
