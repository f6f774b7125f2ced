"""What came out, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from pyronorm.diagnostics import Agreement
from pyronorm.study.reference.posteriors import Candidate
from pyronorm.study.reference.settings import Settings

__all__ = ["Mixing", "Result", "Row", "format_rows", "table"]


@dataclass(frozen=True, eq=False)
class Mixing:
    """How well the chains mixed, each of shape ``(latent,)``.

    Attributes:
        rhat: rank-normalized split R-hat.
        ess_bulk: effective sample size of the bulk.
        ess_tail: effective sample size of the tails.
        divergences: number of divergent trajectories in all.
    """

    rhat: Float[Tensor, " latent"]
    ess_bulk: Float[Tensor, " latent"]
    ess_tail: Float[Tensor, " latent"]
    divergences: int


@dataclass(frozen=True, eq=False)
class Row:
    """One posterior beside the truth.

    Attributes:
        name: of the posterior. ``nuts`` is the truth itself; ``nuts-half`` one half of the chains
            judged by the other, which shows what finite chains alone amount to.
        agreement: with the truth. Latents are the shifts, then the log scales.
        draws: of the latents, shape ``(sample, latent)``.
        nll: mean negative log predictive probability of the test data, nats.
        pareto_k: tail of the importance ratios; NaN where undefined.
        elbo: the evidence lower bound, nats; NaN without a density.
        elbo_error: its standard error.
        seconds: to find the posterior, on the wall.
        cpu_seconds: the same, of all cores together.
    """

    name: str
    agreement: Agreement
    draws: Float[Tensor, "sample latent"]
    nll: float
    pareto_k: float
    elbo: float
    elbo_error: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of :func:`pyronorm.study.reference.run`.

    Attributes:
        settings: the problem.
        candidates: what was judged.
        layers: channels of each normalized layer, by name.
        network: metrics of the network without noise on the test data.
        mixing: of the chains.
        correlation: of the latents under the truth, shape ``(latent, latent)``.
        gaussian_limits: by the name of a guide, the sd over the true one that it would have at the
            optimum of the ELBO if the posterior were a Gaussian of the same covariance
            (:func:`pyronorm.diagnostics.factorized_spread`,
            :func:`pyronorm.diagnostics.low_rank_spread`).
        rows: ``nuts``, ``nuts-half``, then one per candidate.
        idatas: for each name ArviZ data, with the log likelihood of the training data.
    """

    settings: Settings
    candidates: tuple[Candidate, ...]
    layers: dict[str, int]
    network: dict[str, float]
    mixing: Mixing
    correlation: Float[Tensor, "latent latent"]
    gaussian_limits: dict[str, Float[Tensor, " latent"]]
    rows: tuple[Row, ...]
    idatas: dict[str, Any]


def table(result: Result) -> pd.DataFrame:
    """A row per posterior.

    Columns: ``mean_error`` (root mean square over latents, in true sds); ``shift_sd`` and
    ``log_scale_sd``, the median ratio of sds, each with ``_low`` and ``_high``, the extremes;
    ``correlation_error``; ``wasserstein``; ``coverage`` (mean over latents) and ``coverage_low``;
    ``nll``; ``pareto_k``; ``elbo`` below the best, and ``elbo_error``; ``seconds``, ``cpu_seconds``.
    The row ``nuts`` has no distance from itself.
    """
    best = np.nanmax([-np.inf, *(row.elbo for row in result.rows)])
    lines = []
    for row in result.rows:
        found = row.agreement
        parts = dict(zip(("shift_sd", "log_scale_sd"), found.sd_ratio.chunk(2), strict=True))
        line: dict[str, float] = {"mean_error": float(found.mean_error.square().mean().sqrt())}
        for name, values in parts.items():
            line[name] = float(np.median(values.numpy()))
            line[f"{name}_low"], line[f"{name}_high"] = float(values.min()), float(values.max())
        line |= {
            "correlation_error": found.correlation_error,
            "wasserstein": found.sliced_wasserstein,
            "coverage": float(found.coverage.mean()),
            "coverage_low": float(found.coverage.min()),
        }
        if row.name == "nuts":
            line = dict.fromkeys(line, np.nan)
        line |= {
            "nll": row.nll,
            "pareto_k": row.pareto_k,
            "elbo": row.elbo - best,
            "elbo_error": row.elbo_error,
            "seconds": row.seconds,
            "cpu_seconds": row.cpu_seconds,
        }
        lines.append(line)
    names = pd.Index([row.name for row in result.rows], name="posterior")
    return pd.DataFrame(lines, index=names)


def format_rows(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a :func:`table` as text; a dash where a number is undefined.

    Args:
        summary: the table.

    Returns:
        The headings, and a list of cells per posterior.
    """
    headings = [
        *("posterior", "mean error", "sd shift", "sd log scale", "corr. error", "Wasserstein"),
        *("coverage", "NLL", "k", "ELBO", "CPU s"),
    ]
    rows = []
    for name, row in summary.iterrows():
        spreads = [
            f"{row[k]:.2f} [{row[f'{k}_low']:.2f}, {row[f'{k}_high']:.2f}]"
            for k in ("shift_sd", "log_scale_sd")
        ]
        cells = [
            f"{row['mean_error']:.2f}",
            *spreads,
            f"{row['correlation_error']:.3f}",
            f"{row['wasserstein']:.3f}",
            f"{row['coverage']:.2f}",
            f"{row['nll']:.4f}",
            f"{row['pareto_k']:.2f}",
            f"{row['elbo']:.1f}",
            f"{row['cpu_seconds']:.1f}",
        ]
        rows.append([str(name), *("-" if "nan" in cell else cell for cell in cells)])
    return headings, rows
