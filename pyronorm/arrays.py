"""Arrays of NumPy where tensors are expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyronorm.errors import DataError

__all__ = ["Array", "as_tensors", "to_tensor"]

Array = Tensor | np.ndarray
"""Data may come as either."""


def to_tensor(array: Array) -> Tensor:
    """A tensor of the numbers of an array, which share their memory where they can.

    Args:
        array: of real numbers; a tensor stays as it is.

    Raises:
        DataError: if it holds something else: texts, objects, complex numbers.
    """
    if isinstance(array, Tensor):
        return array
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biuf" or size > 8:
        raise DataError(
            f"data: arrays must hold real numbers of at most 64 bits, got dtype {array.dtype}. Convert "
            "it, such as by array.astype('float32')."
        )
    if kind == "u" and size > 1:  # torch computes with signed ones
        if size == 8 and array.size and array.max() > np.iinfo(np.int64).max:
            raise DataError(
                f"data: an array of {array.dtype} has {array.max()}, which is above what int64 holds."
            )
        array = array.astype(np.int64)
    elif not array.dtype.isnative or not array.flags.writeable or min((*array.strides, 0)) < 0:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def as_tensors(data: Any) -> Any:
    """The same data with tensors for arrays, in tuples, lists, dictionaries and dataclasses.

    Args:
        data: anything; what has no arrays in it stays the same object.

    Raises:
        DataError: as :func:`to_tensor`.
    """
    if isinstance(data, np.ndarray):
        return to_tensor(data)
    if type(data) in (tuple, list) or (isinstance(data, tuple) and hasattr(data, "_fields")):
        parts = _changed(dict(enumerate(data)))
        if parts is None:
            return data
        return (
            type(data)(*parts.values()) if hasattr(data, "_fields") else type(data)(parts.values())
        )
    if isinstance(data, Mapping):
        named = _changed(data)
        return data if named is None else named
    if is_dataclass(data) and not isinstance(data, type):
        named = _changed({f.name: getattr(data, f.name) for f in fields(data) if f.init})
        return data if named is None else replace(data, **named)
    return data


def _changed(parts: Mapping[Any, Any]) -> dict[Any, Any] | None:
    """The parts with tensors for arrays; None where there are no arrays."""
    found = {name: as_tensors(part) for name, part in parts.items()}
    return None if all(found[name] is parts[name] for name in parts) else found
