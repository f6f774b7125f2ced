"""The one place that knows ArviZ 0.x from 1.x when data are built or written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pyronorm.errors import OptionError

__all__ = ["Groups", "build", "group_of", "netcdf"]

Groups = dict[str, dict[str, Any]]
"""NumPy arrays by group and variable."""


def build(
    groups: Groups,
    coords: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Any],
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Build an InferenceData (ArviZ 0.x) or a DataTree (ArviZ 1.x).

    Args:
        groups: arrays, those over draws with the axes ``(chain, draw)`` in front.
        coords: labels by dimension.
        dims: dimensions by variable, without chain and draw.
        attributes: of the posterior.
        kept: for a group, the positions that stay along a dimension.
    """
    import arviz as az

    old = az.__version__.startswith("0.")
    if old:
        data = az.from_dict(**groups, coords=dict(coords), dims=dict(dims))  # type: ignore[arg-type]
    else:
        data = az.from_dict(groups, coords=coords, dims=dims)
    for group, positions in (kept or {}).items():
        dataset = (data[group] if old else data[group].to_dataset()).isel(positions)
        if old:
            setattr(data, group, dataset)
        else:
            data[group].dataset = dataset
    (data.posterior if old else data["posterior"]).attrs.update(attributes)
    return data


def netcdf(data: Any) -> bytes:
    """The content of a netCDF file, as ``data.to_netcdf(file)`` writes it.

    It is made in memory, for the HDF5 library ends the process where a disk is full.

    Args:
        data: an InferenceData (ArviZ 0.x) or a DataTree (ArviZ 1.x).
    """
    import h5netcdf
    import xarray
    from xarray.backends import H5NetCDFStore

    if hasattr(data, "subtree"):
        groups = {n.path.strip("/"): n.to_dataset(inherit=False) for n in data.subtree}
    else:
        groups = {"": xarray.Dataset(attrs=data.attrs), **{n: data[n] for n in data.groups()}}
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        for name, dataset in groups.items():
            store = H5NetCDFStore(file.create_group(name) if name else file, mode="w")
            smaller = [k for k, v in dataset.variables.items() if v.dtype.kind in "biufc"]
            dataset.dump_to_store(store, encoding={k: {"zlib": True} for k in smaller})
    return buffer.getvalue()


def group_of(idata: Any, name: str, where: str) -> Any:
    """A group of ArviZ data.

    Args:
        idata: what :func:`pyronorm.to_arviz` returned, or something else.
        name: the group.
        where: the caller, for the message.

    Raises:
        OptionError: if it is no ArviZ data, or has no such group.
    """
    if isinstance(idata, type) or not (hasattr(idata, "groups") or isinstance(idata, Mapping)):
        raise OptionError(
            f"{where}: expected ArviZ data, got {type(idata).__name__}. Export the posterior first: "
            "pyronorm.to_arviz(model, posterior, train_data)."
        )
    try:
        return idata[name]
    except KeyError:
        raise OptionError(
            f"{where}: there is no group {name}; give what pyronorm.to_arviz returns for training data, "
            "pairs (x, y)."
        ) from None
