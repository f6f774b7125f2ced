"""Arrays and their labels on the way to ArviZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pyronorm.diagnostics.arviz_versions import Groups
from pyronorm.errors import OptionError

__all__ = ["DATA_GROUPS", "Coords", "Dims", "labelled", "layers_of", "numpy_of"]

Coords = Mapping[str, Any]
"""Labels by dimension."""

Dims = Mapping[str, Sequence[str]]
"""Dimensions by variable, without chain and draw."""

DATA_GROUPS = ("observed_data", "constant_data")
"""Groups whose variables have no chains and draws."""


def numpy_of(value: Tensor) -> NDArray[Any]:
    """The array of a tensor; NumPy has no bfloat16, so that becomes float32."""
    value = value.detach().cpu()
    array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def labelled(
    groups: Groups, coords: Coords, dims: Dims, users_coords: Coords | None, users_dims: Dims | None
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Names and labels of the axes, with those of the user's in place of ours.

    Args:
        groups: arrays, those over draws with the axes ``(chain, draw)`` in front.
        coords: our labels.
        dims: our dimensions.
        users_coords: labels of the user's.
        users_dims: dimensions of the user's.

    Returns:
        Labels by dimension, and dimensions by variable.

    Raises:
        OptionError: if a variable or a dimension is not there, or has another number of axes or labels.
    """
    axes: dict[str, tuple[int, ...]] = {}
    for group, variables in groups.items():
        for name, value in variables.items():
            shape = value.shape if group in DATA_GROUPS else value.shape[2:]
            axes[name] = max(axes.get(name, ()), shape, key=len)
    named = {n: [*dims.get(n, [f"{n}_dim_{i}" for i in range(len(s))])] for n, s in axes.items()}
    for name, given in (users_dims or {}).items():
        if name not in axes:
            raise OptionError(
                f"to_arviz: dims names the variable {name!r}; there are {sorted(axes)}."
            )
        if isinstance(given, str) or len(given) != len(axes[name]):
            raise OptionError(
                f"to_arviz: dims must name the {len(axes[name])} axes of {name!r}, of lengths "
                f"{axes[name]}, besides chain and draw; got {given!r}."
            )
        named[name] = [*given]
    sizes: dict[str, int] = {}
    for name, shape in axes.items():
        for dimension, size in zip(named[name], shape, strict=True):
            if sizes.setdefault(dimension, size) != size:
                raise OptionError(
                    f"to_arviz: the dimension {dimension!r} has {sizes[dimension]} entries in one "
                    f"variable and {size} in {name!r}. Give them dimensions of their own by dims."
                )
    labels = {name: value for name, value in coords.items() if name in sizes}
    for name, given in (users_coords or {}).items():
        if name not in sizes:
            raise OptionError(
                f"to_arviz: coords names the dimension {name!r}; there are {sorted(sizes)}."
            )
        if len(given) != sizes[name]:
            raise OptionError(
                f"to_arviz: coords has {len(given)} labels for {name!r}, which has {sizes[name]} "
                "entries."
            )
        labels[name] = given
    return labels, named


def layers_of(idata: Any, where: str, prefix: str = "") -> list[str]:
    """The layer of each channel of an export.

    Args:
        idata: what :func:`pyronorm.to_arviz` returned, or read back from a file.
        where: the caller, for the message.
        prefix: that of the :class:`~pyronorm.LatentNetwork`.

    Raises:
        OptionError: if there is no network with that prefix.
    """
    try:
        constant = idata["constant_data"]
        return [str(name) for name in constant[f"{prefix}layer"].values]
    except (KeyError, TypeError, AttributeError):
        raise OptionError(
            f"{where}: the export has no channels of a network with the prefix {prefix!r}; give what "
            "pyronorm.to_arviz returned, and the prefix of the LatentNetwork if it has one."
        ) from None
