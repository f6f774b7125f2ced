"""Numbers that a likelihood is made with: positive, in the shape of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.errors import OptionError, ShapeError

__all__ = ["broadcast", "positive"]


def positive(where: str, name: str, value: float | Tensor) -> Tensor:
    """A setting as a tensor of its own; OptionError if it is not positive and finite."""
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise OptionError(f"{where}: {name} must be positive and finite, got {value}.")
    return tensor


def broadcast(where: str, name: str, value: Tensor, output: Tensor, num_sample_dims: int) -> Tensor:
    """A setting in the shape of the output.

    Raises:
        ShapeError: if it does not broadcast with the axes after the batch.
    """
    out = output.shape[num_sample_dims + 1 :]
    try:
        return value.expand(out).expand(output.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{where}: {name} of shape {tuple(value.shape)} does not broadcast to outputs of shape "
            f"{tuple(out)} per example."
        ) from error
