"""The one place that knows ArviZ 0.x from 1.x when data are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Groups", "build"]

Groups = dict[str, dict[str, Any]]
"""NumPy arrays by group and variable."""


def build(
    groups: Groups,
    coords: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Any],
    layers: Mapping[str, tuple[str, Sequence[str]]],
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Build an InferenceData (ArviZ 0.x) or a DataTree (ArviZ 1.x).

    Args:
        groups: arrays, those over draws with the axes ``(chain, draw)`` in front.
        coords: labels by dimension.
        dims: dimensions by variable, without chain and draw.
        attributes: of the posterior.
        layers: further coordinates, by name: the dimension they lie along, and their labels.
        kept: for a group, the positions that stay along a dimension.
    """
    import arviz as az

    old = az.__version__.startswith("0.")
    if old:
        data = az.from_dict(**groups, coords=dict(coords), dims=dict(dims))  # type: ignore[arg-type]
    else:
        data = az.from_dict(groups, coords=coords, dims=dims)
    for group in groups:
        dataset = data[group] if old else data[group].to_dataset()
        along = {name: value for name, value in layers.items() if value[0] in dataset.dims}
        if group in ("posterior", "prior"):
            dataset = dataset.assign_coords(along)
        dataset = dataset.isel((kept or {}).get(group, {}))
        if old:
            setattr(data, group, dataset)
        else:
            data[group].dataset = dataset
    (data.posterior if old else data["posterior"]).attrs.update(attributes)
    return data
