"""A posterior in a table: a row per layer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pyronorm.checks import checked
from pyronorm.diagnostics.arviz_labels import layers_of
from pyronorm.diagnostics.arviz_versions import group_of
from pyronorm.latents import Per

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarize"]

_NAMES = ("shift", "scale", "mean", "std")  # those over channels


@checked
def summarize(idata: Any, per: Per | str = Per.LAYER, prefix: str = "") -> pd.DataFrame:
    r"""Summarize shift and scale, and the statistics they imply, by layer.

    ``arviz.summary`` has a row per channel, which are thousands. Here a row is a variable of a layer:
    mean over channels of the posterior means, root mean square of the posterior standard deviations,
    and the smallest and the largest posterior mean. For chains also the largest :math:`\hat R` and the
    smallest bulk effective sample size; independent draws have neither, nor warnings about them.

    Args:
        idata: what :func:`pyronorm.to_arviz` returned, or read back from a file.
        per: what has a row of its own: "network", "layer" or "channel".
        prefix: of the network, in a Pyro model with several.

    Returns:
        A table with the columns ``channels``, ``mean``, ``sd``, ``min``, ``max``, for chains
        ``ess_bulk`` and ``r_hat``; index ``variable`` and ``layer`` (``channel``), or ``variable``.

    Raises:
        OptionError: if there are no such layers.
        ImportError: if pandas is not installed.
    """
    import pandas as pd

    per = Per.of(per)
    layers = np.asarray(layers_of(idata, "summarize", prefix))
    posterior = group_of(idata, "posterior", "summarize")
    labels = [str(label) for label in posterior[f"{prefix}channel"].values]
    groups = {
        Per.NETWORK: np.full(len(layers), "network"),
        Per.LAYER: layers,
        Per.CHANNEL: np.asarray(labels),
    }[per]
    chains = _has_chains(idata)
    rows = []
    for name in (f"{prefix}{name}" for name in _NAMES if f"{prefix}{name}" in posterior):
        values = np.asarray(posterior[name].values, dtype=np.float64)
        mean, variance = values.mean((0, 1)), values.var((0, 1), ddof=1)
        found = _of_chains(idata, name) if chains else None
        for group in dict.fromkeys(groups.tolist()):
            mine = groups == group
            row: dict[str, Any] = {
                "variable": name,
                per.value: group,
                "channels": int(mine.sum()),
                "mean": mean[mine].mean(),
                "sd": float(np.sqrt(variance[mine].mean())),
                "min": mean[mine].min(),
                "max": mean[mine].max(),
            }
            if found is not None:
                row |= {
                    "ess_bulk": found["ess_bulk"].to_numpy(dtype=float)[mine].min(),
                    "r_hat": found["r_hat"].to_numpy(dtype=float)[mine].max(),
                }
            rows.append(row)
    return pd.DataFrame(rows).set_index(["variable", per.value])


def _has_chains(idata: Any) -> bool:
    """Whether the draws are those of MCMC: others are independent."""
    posterior = idata["posterior"]
    chains, draws = len(posterior["chain"]), len(posterior["draw"])
    try:
        sampled = "diverging" in idata["sample_stats"]
    except KeyError:
        return False
    return sampled and chains > 1 and draws >= 4


def _of_chains(idata: Any, name: str) -> pd.DataFrame:
    import arviz as az

    run: Any = az.summary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: pd.DataFrame = run(idata, var_names=[name], kind="diagnostics", round_to="none")
    return found
