"""Whether several training runs of a guide found the same posterior."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyronorm.checks import checked
from pyronorm.diagnostics.arviz_versions import group_of
from pyronorm.errors import OptionError

__all__ = ["compare_restarts"]


@checked
def compare_restarts(idatas: Sequence[Any], var_names: Iterable[str] = ("shift", "scale")) -> Any:
    r"""Compare several fits of a guide, from different starts, as if they were Markov chains.

    All draws of a fit make up one chain, and ArviZ's rank-normalized split :math:`\hat R` compares the
    scatter between them with that within. Fits that agree have :math:`\hat R` near 1 (below 1.01);
    otherwise training has not converged, or has several optima. Agreement says nothing about the
    distance to the posterior: for that see :func:`pareto_k`. Freeze the network, or its weights differ
    as well.

    Args:
        idatas: what :func:`pyronorm.to_arviz` returned for each fit, of one network and with equally
            many draws.
        var_names: variables of the group ``posterior``.

    Returns:
        An xarray Dataset with the dimension ``statistic``: ``rhat``; ``sd``, the root mean square of
        the fits' standard deviations; ``sd_between``, the standard deviation of their means (divisor:
        fits - 1). Its attribute ``max_rhat`` is the largest, NaN if a variable is constant (a point).

    Raises:
        OptionError: if there are fewer than two fits, or fewer than four draws, or they differ in
            variables, shape or layers.

    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner, "Rank-Normalization, Folding, and
    Localization: An Improved R-hat for Assessing Convergence of MCMC" (Bayesian Analysis 2021); as in
    ArviZ.
    """
    import arviz as az
    import xarray as xr

    if len(idatas) < 2:
        raise OptionError(f"compare_restarts: needs at least two fits, got {len(idatas)}.")
    names = list(var_names)
    posteriors = [group_of(idata, "posterior", "compare_restarts") for idata in idatas]
    for position, posterior in enumerate(posteriors):
        missing = [name for name in names if name not in posterior.data_vars]
        if missing:
            raise OptionError(
                f"compare_restarts: fit {position} has no variable {missing[0]!r}; it has "
                f"{list(map(str, posterior.data_vars))}."
            )
    summary, largest = {}, []
    for name in names:
        fits = [_one_chain(posterior[name]) for posterior in posteriors]
        for position, fit in enumerate(fits):
            if fit.sizes != fits[0].sizes or not _same_coords(fit, fits[0]):
                raise OptionError(
                    f"compare_restarts: {name!r} of fit {position} has {dict(fit.sizes)}, or other "
                    f"coordinates, where fit 0 has {dict(fits[0].sizes)}. Export fits of one network "
                    "with one num_samples."
                )
        if fits[0].sizes["draw"] < 4:
            raise OptionError("compare_restarts: needs at least 4 draws of each fit.")
        joined = xr.concat(fits, dim="chain").to_dataset(name=name)
        rhat = az.rhat(joined)[name]  # type: ignore[no-untyped-call]
        values = joined[name]
        sd = np.sqrt((values.std("draw", ddof=1) ** 2).mean("chain"))
        between = values.mean("draw").std("chain", ddof=1)
        index = xr.DataArray(["rhat", "sd", "sd_between"], dims="statistic", name="statistic")
        summary[name] = xr.concat([rhat, sd, between], dim=index)
        largest.append(float(rhat.max(skipna=False)))
    return xr.Dataset(summary, attrs={"max_rhat": float(np.max(largest))})


def _one_chain(values: Any) -> Any:
    """All draws of a variable, (draw, ...)."""
    rest = [dim for dim in values.dims if dim not in ("chain", "draw")]
    stacked = values.transpose("chain", "draw", *rest)
    count = stacked.sizes["chain"] * stacked.sizes["draw"]
    first = stacked.isel(chain=0, drop=True).isel(draw=0, drop=True)
    data = stacked.values.reshape(count, *first.shape)
    return first.expand_dims(draw=np.arange(count)).copy(data=data)


def _same_coords(one: Any, other: Any) -> bool:
    labels = (set(one.coords) | set(other.coords)) - {"draw"}
    return all(
        key in one.coords and key in other.coords and one[key].equals(other[key]) for key in labels
    )
