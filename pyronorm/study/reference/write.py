"""Files, plots and a report."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyronorm import plots
from pyronorm.diagnostics import correlation
from pyronorm.diagnostics.arviz_versions import netcdf
from pyronorm.files import StrPath, make_folder, write_file
from pyronorm.study.environment import environment
from pyronorm.study.reference.result import Result, Row, format_rows, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write"]

_SHOWN = ("mean-field", "paired", "low-rank-20", "flow", "auto-full", "mcbn")
"""Posteriors in the plots of marginals and correlations, where they were judged."""

_EXPLANATIONS = (
    "mean error: root mean square over the latents of the error of their means, in true sds.",
    "sd shift, sd log scale: sd over the true sd, median over latents [least, largest].",
    "corr. error: root mean square error of the off-diagonal correlations.",
    "Wasserstein: sliced Wasserstein distance of order 1, latents in true sds.",
    "coverage: mean share of the NUTS draws within each latent's central interval of that nominal "
    "probability.",
    "NLL: mean negative log predictive probability of the test data, nats.",
    "k: Pareto k of the importance ratios; above 0.7 they are unreliable.",
    "ELBO: below the best one, nats, so also by how much the KL divergence to the posterior is larger.",
    "CPU s: seconds of all cores together to find the posterior; a bank is collected once for all.",
    "`nuts-half`: one half of the chains judged by the other, what finite chains alone amount to.",
)


def write(result: Result, folder: StrPath, command: str) -> None:
    """Write table, results, ArviZ files, plots and a report.

    Args:
        result: the outcome.
        folder: where to write; made if it does not exist. Files of an earlier result are replaced.
        command: the command that produced it, for the report.

    Raises:
        FileError: if a file cannot be written.
    """
    place = Path(folder)
    summary = table(result)
    record = _record(result, command)
    text = json.dumps(_finite(record), indent=2, allow_nan=False)
    for part in ("arviz", "plots"):
        make_folder(place / part)
    write_file(place / "table.csv", summary.to_csv())
    write_file(place / "results.json", text + "\n")
    for name, idata in result.idatas.items():
        write_file(place / "arviz" / f"{name}.nc", netcdf(idata))
    figures = _figures(result)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_file(place / "plots" / f"{name}.png", buffer.getvalue())
    write_file(place / "report.md", _report(result, summary, record))
    for part, suffix, names in (("arviz", "nc", result.idatas), ("plots", "png", figures)):
        for old in (place / part).glob(f"*.{suffix}"):
            if old.stem not in names:
                old.unlink()  # of an earlier result


def _record(result: Result, command: str) -> dict[str, Any]:
    mixing = result.mixing
    return {
        "command": command,
        "settings": {**asdict(result.settings), "prior": repr(result.settings.prior)},
        "environment": {**environment(), "threads": "1"},
        "network": result.network,
        "chains": {
            "rhat": mixing.rhat.tolist(),
            "ess_bulk": mixing.ess_bulk.tolist(),
            "ess_tail": mixing.ess_tail.tolist(),
            "divergences": mixing.divergences,
        },
        "sd_ratio_if_gaussian": {k: v.tolist() for k, v in result.gaussian_limits.items()},
        "posteriors": {row.name: _row(row) for row in result.rows},
    }


def _row(row: Row) -> dict[str, Any]:
    found = row.agreement
    return {
        "mean_error": found.mean_error.tolist(),
        "sd_ratio": found.sd_ratio.tolist(),
        "coverage": found.coverage.tolist(),
        "correlation_error": found.correlation_error,
        "sliced_wasserstein": found.sliced_wasserstein,
        "nll": row.nll,
        "pareto_k": row.pareto_k,
        "elbo": row.elbo,
        "elbo_error": row.elbo_error,
        "seconds": row.seconds,
        "cpu_seconds": row.cpu_seconds,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(result: Result) -> dict[str, Figure]:
    rows = {row.name: row for row in result.rows}
    shown = {name: rows[name] for name in _SHOWN if name in rows}
    shown = shown or {name: row for name, row in rows.items() if name != "nuts"}
    figures = {"marginals": _marginals(result, rows["nuts"], shown)}
    ratios = {}
    for row in result.rows:
        if row.name not in ("nuts", "point"):
            shift, log_scale = row.agreement.sd_ratio.chunk(2)
            ratios[row.name] = (shift, log_scale)
    if ratios:
        figure = _figure(8, 1.5 + 0.3 * len(ratios))
        plots.plot_spread_ratio(ratios, ax=figure.subplots())
        figures["spread"] = figure
    groups = {
        f"{what} {name}": size
        for what in ("shift", "log scale")
        for name, size in result.layers.items()
    }
    matrices = {"nuts": result.correlation, **{k: correlation(r.draws) for k, r in shown.items()}}
    columns = min(4, len(matrices))
    lines = -(-len(matrices) // columns)
    figure = _figure(4 * columns, 3.7 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=False):
        plots.plot_correlation(matrix, groups, ax=ax).set_title(name)
    for ax in axes[len(matrices) :]:
        ax.set_axis_off()
    figures["correlations"] = figure
    return figures


def _marginals(result: Result, truth: Row, shown: dict[str, Row]) -> Figure:
    """For each layer the shift and the log scale of the channel of median spread."""
    size = sum(result.layers.values())
    figure = _figure(11, 3.2 * len(result.layers))
    axes = figure.subplots(len(result.layers), 2, squeeze=False)
    start = 0
    for pair, (layer, channels) in zip(axes, result.layers.items(), strict=True):
        own = truth.draws[:, start : start + channels].std(0)
        channel = int(own.argsort()[channels // 2])
        for ax, what, offset in zip(pair, ("shift", "log scale"), (0, size), strict=True):
            latent = offset + start + channel
            draws = {name: row.draws[:, latent] for name, row in shown.items()}
            label = f"{what} of layer {layer}, channel {channel}"
            plots.plot_marginal(draws, truth.draws[:, latent], label, ax=ax)
            if ax is not axes[0, 1]:
                ax.get_legend().remove()
        start += channels
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _report(result: Result, summary: pd.DataFrame, record: dict[str, Any]) -> str:
    headings, rows = format_rows(summary)
    settings, mixing = result.settings, result.mixing
    latents = 2 * sum(result.layers.values())
    limits = "; ".join(
        f"{name} {float(v.median()):.2f} [{float(v.min()):.2f}, {float(v.max()):.2f}]"
        for name, v in result.gaussian_limits.items()
    )
    data = "all" if settings.num_data is None else str(settings.num_data)
    wall, cpu = (sum(getattr(row, k) for row in result.rows) for k in ("seconds", "cpu_seconds"))
    lines = [
        "# Posteriors against NUTS",
        f"`{record['command']}`",
        f"scikit-learn's digits, a perceptron with {len(result.layers)} normalized layers, {latents} "
        f"latents, prior `{settings.prior!r}`, seed {settings.seed}. The network: {settings.epochs} "
        f"epochs of batch normalization, batch size {settings.batch_size}, Adam at {settings.lr}; then "
        f"frozen, with population statistics. Test accuracy {result.network['accuracy']:.3f}, NLL "
        f"{result.network['nll']:.4f}.",
        f"NUTS: {settings.chains} chains of {settings.draws} draws after {settings.warmup} steps of "
        f"warm-up on {data} training data; largest R-hat {float(mixing.rhat.max()):.3f}, effective "
        f"draws at least {float(mixing.ess_bulk.min()):.0f} (bulk) and "
        f"{float(mixing.ess_tail.min()):.0f} (tails), {mixing.divergences} divergent.",
        f"Guides: {settings.steps} steps on all training data, {settings.particles} draws per step, "
        f"Adam from {settings.guide_lr} falling linearly to a hundredth. Banks: {settings.bank_rows} "
        f"batches. {settings.num_samples} draws of each posterior are judged, intervals are of "
        f"probability {settings.level}.",
        "\n".join(
            "| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)
        ),
        " ".join(_EXPLANATIONS),
        "If the posterior were a Gaussian of the covariance found by NUTS, the sd ratios of "
        f"guides at the optimum of the ELBO would be: {limits} (median [least, largest]).",
        f"Sampling and training took {wall:.0f} s, {cpu:.0f} s of all cores together.",
        "## Posteriors",
        "\n".join(f"- `{c.name}`: {c.description}" for c in result.candidates),
        "## Plots",
        *(f"![{name}](plots/{name}.png)" for name in ("marginals", "spread", "correlations")),
        "## Files",
        "- `table.csv`: the table; `results.json`: every latent, settings and versions\n"
        "- `arviz/*.nc`: draws of posterior and prior, and the log likelihood of the training data; "
        "read with `arviz.from_netcdf`",
        "## Environment",
        ", ".join(f"{key} {value}" for key, value in record["environment"].items()),
    ]
    return "\n\n".join(lines) + "\n"
