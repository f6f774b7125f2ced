"""How far a variational posterior is from the posterior: Pareto-smoothed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyronorm.checks import Count, checked
from pyronorm.diagnostics.arviz_versions import group_of
from pyronorm.display import displayed
from pyronorm.errors import NoDensityError, OptionError

__all__ = ["ParetoK", "importance_summary", "pareto_k"]

_MIN_DRAWS = 25  # five draws in the tail, the fewest that a Pareto distribution is fitted to


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class ParetoK:
    r"""The tail of the importance ratios of a posterior, or why there is none.

    Attributes:
        k: shape :math:`\hat k` of the generalized Pareto distribution of the largest ratios; NaN
            where it is undefined.
        num_draws: number of draws.
        log_weights: logarithms of the smoothed importance weights, which sum to 1; None where they are
            undefined.
        undefined: why there is no :math:`\hat k`; empty where there is.
    """

    k: float
    num_draws: Count
    log_weights: NDArray[np.float64] | None
    undefined: str

    @property
    def threshold(self) -> float:
        r""":math:`\min(1 - 1/\log_{10} S, 0.7)`: above, estimates from ``S`` draws are unreliable."""
        return min(1 - 1 / math.log10(self.num_draws), 0.7)

    @property
    def reliable(self) -> bool:
        r"""Whether :math:`\hat k` is at most :attr:`threshold`; False where it is undefined."""
        return self.k <= self.threshold

    @property
    def effective_draws(self) -> float:
        r""":math:`1/\sum_s w_s^2`, how many draws the weights leave; NaN where they are undefined."""
        if self.log_weights is None:
            return math.nan
        return float(1 / np.exp(2 * self.log_weights).sum())


@checked
def pareto_k(idata: Any) -> ParetoK:
    r"""Diagnose a variational posterior by the ratios :math:`p(y, z_s)/q(z_s)` of its draws.

    From ``sample_stats`` of :func:`pyronorm.to_arviz`, ``lp`` and ``log_q``, by ArviZ. Below 0.5 the
    ratios have a variance, and importance sampling corrects what is left; above
    :attr:`ParetoK.threshold` the approximation misses too much for that. ``lp`` must be that of the
    training data, all of them: of a part, scaled up, it belongs to another posterior.

    Some posteriors have no :math:`\hat k`, and then the result says why: a statistics bank, a point
    or a guide without density has no ``log_q``, MCMC draws are no approximation, and an export without
    data has no ``lp``.

    Args:
        idata: what :func:`pyronorm.to_arviz` returned, or read back from a file.

    Raises:
        OptionError: if ``idata`` has no ``sample_stats``, or fewer than 25 draws.

    Source: Yao, Vehtari, Simpson & Gelman, "Yes, but Did It Work?: Evaluating Variational Inference"
    (ICML 2018); the threshold of Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance
    Sampling" (JMLR 2024).
    """
    reason = undefined_ratios(idata, "pareto_k")
    stats = idata["sample_stats"]
    num_draws = int(stats["log_prior"].size)
    if reason:
        return ParetoK(math.nan, num_draws, None, reason)
    ratios = (stats["lp"].values - stats["log_q"].values).astype(np.float64).ravel()
    if not np.isfinite(ratios).all():
        return ParetoK(math.nan, num_draws, None, "lp or log q is not finite for some draws")
    log_weights, k = _psis(ratios)
    return ParetoK(float(k), num_draws, log_weights, "")


def undefined_ratios(idata: Any, where: str) -> str:
    """Why a posterior has no ratios p(y, z)/q(z); empty where it has.

    Args:
        idata: as in :func:`pareto_k`.
        where: the name that error messages put in front.

    Raises:
        OptionError: if ``idata`` has no ``sample_stats``, or fewer than 25 draws.
    """
    stats = group_of(idata, "sample_stats", where)
    num_draws = int(stats["log_prior"].size)
    if num_draws < _MIN_DRAWS:
        raise OptionError(f"{where}: needs at least {_MIN_DRAWS} draws, got {num_draws}.")
    if "diverging" in stats:
        return "the draws are of MCMC, from the posterior itself"
    if "log_q" not in stats:
        method = idata["posterior"].attrs.get("method", "the posterior")
        return f"{method} has no density log q (a bank, a point or an implicit guide)"
    if "lp" not in stats:
        return "the export has no lp: give to_arviz the training data, pairs (x, y)"
    return ""


@checked
def importance_summary(idata: Any, var_names: Iterable[str] = ("shift", "scale")) -> Any:
    """Mean and standard deviation of the draws, as they are and weighted by importance.

    Args:
        idata: as in :func:`pareto_k`.
        var_names: variables of the group ``posterior``.

    Returns:
        An xarray Dataset with the dimension ``statistic`` (``mean``, ``sd``, ``corrected_mean``,
        ``corrected_sd``) and the variables' own; its attributes ``pareto_k``, ``reliable`` (0 or 1) and
        ``effective_draws`` say whether to believe the corrected ones.

    Raises:
        NoDensityError: if the weights are undefined; the message says why.
        OptionError: if a variable is not there.
    """
    import xarray as xr

    group_of(idata, "sample_stats", "importance_summary")
    found = pareto_k(idata)
    if found.log_weights is None:
        raise NoDensityError(f"importance_summary: there are no weights: {found.undefined}.")
    posterior = idata["posterior"]
    summary = {}
    for name in var_names:
        if name not in posterior.data_vars:
            raise OptionError(
                f"importance_summary: there is no variable {name!r}; there are "
                f"{list(map(str, posterior.data_vars))}."
            )
        values = posterior[name]
        draws = values.dims[:2]
        shape = tuple(values.sizes[d] for d in draws)
        weights = xr.DataArray(np.exp(found.log_weights).reshape(shape), dims=draws)
        mean = (weights * values).sum(draws)
        sd = np.sqrt((weights * (values - mean) ** 2).sum(draws))
        parts = [values.mean(draws), values.std(draws), mean, sd]
        index = xr.DataArray(["mean", "sd", "corrected_mean", "corrected_sd"], dims="statistic")
        summary[name] = xr.concat(parts, dim=index.rename("statistic"))
    attributes = {
        "pareto_k": found.k,
        "reliable": int(found.reliable),
        "effective_draws": found.effective_draws,
    }
    return xr.Dataset(summary, attrs=attributes)


def _psis(log_ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Smoothed normalized log weights and the tail's shape, with either ArviZ."""
    import arviz as az

    if az.__version__.startswith("0."):
        log_weights, k = az.psislw(log_ratios)  # type: ignore[no-untyped-call]
    else:
        from arviz_stats.base import array_stats

        # It takes log likelihoods, as for leave-one-out, whose ratios are the reciprocals.
        log_weights, k = array_stats.psislw(-log_ratios)
    return np.asarray(log_weights), float(k)
