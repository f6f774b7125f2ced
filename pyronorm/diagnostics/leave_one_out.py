"""Leave-one-out cross-validation of posteriors that are approximations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyronorm.checks import checked
from pyronorm.diagnostics.arviz_versions import group_of
from pyronorm.diagnostics.variational import undefined_ratios
from pyronorm.display import displayed
from pyronorm.errors import OptionError

__all__ = ["LeaveOneOut", "compare", "loo"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut:
    r"""Leave-one-out cross-validation by importance sampling.

    Attributes:
        elpd: expected log pointwise predictive density, the sum over examples, in nats; NaN where
            most examples have too large a :math:`\hat k`, since the sum then estimates nothing.
        se: its standard error, from the scatter over examples; NaN with ``elpd``.
        p: effective number of parameters; NaN with ``elpd``.
        pareto_k: :math:`\hat k` of each example, shape ``(example,)``; NaN where draws do not differ.
        threshold: above it an example's :math:`\hat k` is too large for so many draws.
        corrected: whether the ratios are corrected for the draws not being the posterior's.
        caveat: what speaks against the numbers; empty if nothing does.
        arviz: ArviZ's object, pointwise, for its own functions.
    """

    elpd: float
    se: float
    p: float
    pareto_k: NDArray[np.float64]
    threshold: float
    corrected: bool
    caveat: str
    arviz: Any

    def _content(self) -> dict[str, Any]:
        """For notebooks."""
        large = int((self.pareto_k > self.threshold).sum())
        return {
            "elpd": self.elpd,
            "se": self.se,
            "p": self.p,
            "examples": len(self.pareto_k),
            "Pareto k too large": large,
            "corrected": self.corrected,
            "caveat": self.caveat,
        }

    def __repr__(self) -> str:
        """The estimate with its standard error, and what speaks against it."""
        text = f"LeaveOneOut(elpd {self.elpd:.2f} ± {self.se:.2f}, p {self.p:.2f}"
        text += ", corrected" if self.corrected else ""
        return f"{text}; {self.caveat})" if self.caveat else f"{text})"


@checked
def loo(idata: Any) -> LeaveOneOut:
    r"""Estimate the predictive density of each training example given the others.

    Draws :math:`z_s` of the posterior are weighted by :math:`1/p(y_i | z_s)` to be as if drawn without
    example :math:`i`. Draws of a guide are not the posterior's: their ratios are multiplied by
    :math:`p(y, z_s)/q(z_s)`,

    .. math::
        r_{is} = \frac{1}{p(y_i | z_s)}\, \frac{p(y, z_s)}{q(z_s)}, \qquad
        \mathrm{elpd}_i = \log \frac{\sum_s \tilde r_{is}\, p(y_i | z_s)}{\sum_s \tilde r_{is}},

    Pareto-smoothed as :math:`\tilde r`. By ``arviz.loo_approximate_posterior`` with ArviZ 1.x; ArviZ 0.x
    has none, and the same is computed with its ``psislw``. Draws of MCMC go to ``arviz.loo`` as they
    are. So do those of a bank or a point, where ``log q`` and with it the correction is *undefined*:
    ``corrected`` is False and ``caveat`` says why. The number is then that of a posterior taken to be
    exact, which it is not.

    The network's weights were fitted to all examples and are not refitted: what is left out is left
    out of the posterior of the latents alone, so all of these numbers are optimistic about new data.

    An example whose :math:`\hat k` is above the threshold has weights without a finite variance: its
    term can be anything, above the in-sample value too. Where that holds for more than half of the
    examples, there is no estimate: ``elpd``, ``se`` and ``p`` are NaN, ``caveat`` says why, and
    ``arviz`` keeps ArviZ's numbers as they are. Use held-out data then (:func:`pyronorm.evaluate`).

    Args:
        idata: what :func:`pyronorm.to_arviz` returned for *all* training data, pairs ``(x, y)``.

    Returns:
        The estimate. ArviZ's warnings about :math:`\hat k` are in ``caveat``.

    Raises:
        OptionError: if there is no log likelihood, not of as many examples as the model was made for,
            or there are fewer than 25 draws.

    Source: Vehtari, Gelman & Gabry, "Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC" (Statistics and Computing 2017); the correction of Magnusson, Andersen,
    Jonasson & Vehtari, "Bayesian Leave-One-Out Cross-Validation for Large Data" (ICML 2019).
    """
    import arviz as az

    log_p = _log_likelihood(idata)
    draws = log_p.shape[0] * log_p.shape[1]
    reason = undefined_ratios(idata, "loo")
    is_mcmc = "diverging" in idata["sample_stats"]
    corrected = reason == ""
    threshold = min(1 - 1 / math.log10(draws), 0.7)
    caveats = [] if corrected or is_mcmc else [f"not corrected: {reason}"]
    old = az.__version__.startswith("0.")
    with warnings.catch_warnings():
        # The warning about large k is in the caveat; constant ratios (a point) divide by zero.
        warnings.simplefilter("ignore")
        if not corrected:
            found: Any = _plain(idata, None if is_mcmc else 1.0)
        elif old:
            found = _approximate(idata)
        else:
            stats = idata["sample_stats"]
            found = az.loo_approximate_posterior(  # type: ignore[attr-defined]
                idata, stats["lp"], stats["log_q"], pointwise=True
            )
    elpd, p = (found.elpd_loo, found.p_loo) if old else (found.elpd, found.p)
    k = np.asarray(found.pareto_k, dtype=np.float64).ravel()
    k = np.where(np.isfinite(k), k, np.nan)
    large = int((k > threshold).sum())
    if large:
        caveats.append(f"{large} of {len(k)} examples have a Pareto k above {threshold:.2f}")
    elpd, se, p = float(elpd), float(found.se), float(p)
    if 2 * large > len(k):
        elpd = se = p = math.nan
        caveats.append("no estimate: evaluate on held-out data instead (pyronorm.evaluate)")
    return LeaveOneOut(elpd, se, p, k, threshold, corrected, "; ".join(caveats), found)


_METHODS = ("stacking", "BB-pseudo-BMA", "pseudo-BMA")  # ArviZ's


@checked
def compare(idatas: Mapping[str, Any], method: str = "stacking") -> Any:
    """Compare posteriors of one data set by leave-one-out cross-validation.

    ArviZ's table, made of :func:`loo` of each posterior, with two more columns: ``corrected`` and
    ``caveat``. Guides, banks and chains stand side by side; where ``corrected`` is False for something
    other than chains, the number takes the draws for the posterior's own (it has no density to
    correct by), and differences to corrected rows are not only differences in prediction. The
    network's weights are fitted to the data in any case: for a fair comparison of *predictions* use
    held-out data (:func:`pyronorm.evaluate`). A posterior for which :func:`loo` has no estimate stands
    last, without numbers and without a part in the weights.

    Args:
        idatas: for each name what :func:`pyronorm.to_arviz` returned for all training data, the same
            for all.
        method: how ArviZ weights them: "stacking", "BB-pseudo-BMA" or "pseudo-BMA".

    Returns:
        A pandas DataFrame, the best first; its columns are those of the ArviZ version at hand.

    Raises:
        OptionError: if there are fewer than two, their data differ, or :func:`loo` refuses one.
    """
    import arviz as az

    run: Any = az.compare
    if len(idatas) < 2:
        raise OptionError(f"compare: needs at least two posteriors, got {len(idatas)}.")
    if method not in _METHODS:
        raise OptionError(f"compare: method must be one of {', '.join(_METHODS)}, got {method!r}.")
    found = {name: loo(idata) for name, idata in idatas.items()}
    names = list(idatas)
    data = [np.asarray(idatas[name]["observed_data"]["y"].values) for name in names]
    for name, y in zip(names, data, strict=True):
        if not np.array_equal(y, data[0], equal_nan=y.dtype.kind == "f"):
            raise OptionError(f"compare: the data y of {name!r} are not those of {names[0]!r}.")
    estimated = [name for name in names if not math.isnan(found[name].elpd)]
    # With fewer than two estimates ArviZ compares nothing: its table of all gives the columns.
    compared = estimated if len(estimated) > 1 else names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = run({name: found[name].arviz for name in compared}, method=method)
    failed = [name for name in names if name not in estimated]
    table = table.reindex([name for name in table.index if name not in failed] + failed)
    numbers = table.select_dtypes("number").columns
    table[numbers] = table[numbers].astype(float)
    table.loc[failed, numbers] = math.nan
    table.loc[failed, "weight"] = 0.0
    if len(estimated) == 1:
        difference = [name for name in ("elpd_diff", "dse") if name in table]
        table.loc[estimated, difference] = 0.0
        table.loc[estimated, "weight"] = 1.0
    table["rank"] = range(len(table))
    table["corrected"] = [found[name].corrected for name in table.index]
    table["caveat"] = [found[name].caveat for name in table.index]
    return table


def _log_likelihood(idata: Any) -> NDArray[np.float64]:
    """The group's values, (chain, draw, example), if they are of all training data."""
    log_p = np.asarray(group_of(idata, "log_likelihood", "loo")["y"].values, dtype=np.float64)
    log_p = log_p.reshape(log_p.shape[:3])  # y may have an axis of length 1
    examples = len(idata["observed_data"]["y"])  # some of them may have no data
    expected = int(idata["posterior"].attrs.get("num_data", examples))
    if examples != expected:
        raise OptionError(
            f"loo: the model was made for num_data={expected} examples, the export has {examples}. "
            "Give pyronorm.to_arviz all training data; on held-out data the log likelihood is out of "
            "sample already (pyronorm.evaluate)."
        )
    return log_p


def _plain(idata: Any, reff: float | None) -> Any:
    """``arviz.loo``, also where the draws do not differ for some example (a point, a saturated one)."""
    import arviz as az

    run: Any = az.loo
    try:
        return run(idata, pointwise=True, reff=reff)
    except ValueError:  # ArviZ 1.x fits no tail to equal ratios, and gives up on all examples
        from arviz_stats.base import array_stats

        log_p = idata["log_likelihood"]["y"].astype(np.float64)
        weights = -log_p.transpose(*log_p.dims[2:], "chain", "draw")
        shapes = np.full(weights.shape[:-2], np.nan)
        for i in np.ndindex(shapes.shape):
            ratios = weights.values[i]
            try:
                smooth, shapes[i] = array_stats.psislw(-ratios.ravel(), r_eff=reff or 1.0)
                weights.values[i] = np.asarray(smooth).reshape(ratios.shape)
            except ValueError:
                weights.values[i] = ratios - np.logaddexp.reduce(ratios, axis=None)
        k = weights.isel(chain=0, draw=0, drop=True).copy(data=shapes)
        return run(idata, pointwise=True, reff=reff or 1.0, log_weights=weights, pareto_k=k)


def _approximate(idata: Any) -> Any:
    """What ``arviz.loo_approximate_posterior`` computes, with ArviZ 0.x."""
    import arviz as az
    from scipy.special import logsumexp

    stats, pointwise = idata["sample_stats"], idata["log_likelihood"]["y"]
    log_p = _log_likelihood(idata)
    log_p = log_p.reshape(-1, log_p.shape[-1]).T  # (example, draw)
    ratios = (stats["lp"].values - stats["log_q"].values).astype(np.float64).ravel()
    log_weights, k = az.psislw(ratios - ratios.max() - log_p)  # type: ignore[no-untyped-call]
    values = logsumexp(log_weights + log_p, axis=1)
    examples, draws = log_p.shape
    lppd = logsumexp(log_p, axis=1) - math.log(draws)
    like = pointwise.isel(chain=0, draw=0, drop=True)
    threshold = min(1 - 1 / math.log10(draws), 0.7)
    entries = {
        "elpd_loo": values.sum(),
        "se": (examples * values.var()) ** 0.5,
        "p_loo": lppd.sum() - values.sum(),
        "n_samples": draws,
        "n_data_points": examples,
        "warning": bool((k > threshold).any()),
        "loo_i": like.copy(data=values.reshape(like.shape)).rename("loo_i"),
        "pareto_k": like.copy(data=k.reshape(like.shape)).rename("pareto_shape"),
        "scale": "log",
        "good_k": threshold,
    }
    return az.ELPDData(data=list(entries.values()), index=list(entries))
