"""The outcome of a comparison: table, files, plots and a report."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyronorm import plots
from pyronorm.study.methods import Method
from pyronorm.study.settings import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Result", "Run", "format_rows", "table", "write"]

_BASELINE = "batch/point"


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        method: the method's name.
        seed: the seed.
        metrics: accuracy, nll, ece and brier on the test data.
        train_seconds: training, plus collecting the bank where the method needs one.
        predict_seconds: predicting the test data, for each draw of the posterior; best of three.
    """

    method: str
    seed: int
    metrics: dict[str, float]
    train_seconds: float
    predict_seconds: float


@dataclass(frozen=True)
class Result:
    """The outcome of :func:`pyronorm.study.compare`.

    Attributes:
        settings: what the methods shared.
        methods: the rows.
        runs: one per method and seed.
        predictions: for each method probabilities and classes of the first seed's test data.
        idatas: for each method the ArviZ data of the first seed.
    """

    settings: Settings
    methods: tuple[Method, ...]
    runs: tuple[Run, ...]
    predictions: dict[str, tuple[Tensor, Tensor]]
    idatas: dict[str, Any]


def table(result: Result) -> pd.DataFrame:
    """Mean and (unbiased) standard deviation over seeds, a row per method.

    Columns ``NAME_mean`` and ``NAME_sd`` for accuracy, nll, ece, brier, ``relative_train_time``
    (training time over that of ``batch/point`` with the same seed; absent without that method) and
    ``predict_ms`` (milliseconds for one draw over the test data).
    """
    baseline = {run.seed: run.train_seconds for run in result.runs if run.method == _BASELINE}
    rows = [
        {
            "method": run.method,
            **run.metrics,
            **({"relative_train_time": run.train_seconds / baseline[run.seed]} if baseline else {}),
            "predict_ms": 1e3 * run.predict_seconds,
        }
        for run in result.runs
    ]
    grouped = pd.DataFrame(rows).groupby("method", sort=False)
    summary = pd.concat(
        [grouped.mean().add_suffix("_mean"), grouped.std().add_suffix("_sd")], axis=1
    )
    order = [f"{name}_{what}" for name in rows[0] if name != "method" for what in ("mean", "sd")]
    return summary[order].reindex([method.name for method in result.methods])


def write(result: Result, folder: Path, command: str) -> None:
    """Write table, results, ArviZ files, plots and a report.

    Args:
        result: the outcome.
        folder: where to write; made if it does not exist. Files of an earlier result are replaced.
        command: the command that produced it, for the report.
    """
    for part, suffix in (("arviz", "nc"), ("plots", "png")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).glob(f"*.{suffix}"):
            old.unlink()  # of an earlier result
    summary = table(result)
    summary.to_csv(folder / "table.csv")
    record = {
        "command": command,
        "settings": asdict(result.settings),
        "environment": _environment(),
        "runs": [_finite(asdict(run)) for run in result.runs],
    }
    text = json.dumps(record, indent=2, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    for name, idata in result.idatas.items():
        idata.to_netcdf(str(folder / "arviz" / f"{name.replace('/', '-')}.nc"))
    _write_plots(result, folder / "plots")
    (folder / "report.md").write_text(_report(result, summary, record), encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


_COLUMNS = (  # name in the table, heading, decimals
    ("accuracy", "accuracy", 3),
    ("nll", "NLL", 3),
    ("ece", "ECE", 3),
    ("brier", "Brier", 3),
    ("relative_train_time", "train time", 2),
    ("predict_ms", "ms/draw", 1),
)


def format_rows(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a :func:`table` as text, ``mean±sd``.

    Args:
        summary: the table.

    Returns:
        The headings, and a list of cells per method.
    """
    columns = [column for column in _COLUMNS if f"{column[0]}_mean" in summary]
    rows = [
        [str(name), *(_cell(row[f"{k}_mean"], row[f"{k}_sd"], digits) for k, _, digits in columns)]
        for name, row in summary.iterrows()
    ]
    return ["method", *(heading for _, heading, _ in columns)], rows


def _cell(mean: float, sd: float, digits: int) -> str:
    # A single seed has no spread.
    return f"{mean:.{digits}f}" if np.isnan(sd) else f"{mean:.{digits}f}±{sd:.{digits}f}"


def _plot_names(result: Result) -> list[str]:
    noisy = any(not name.endswith("/point") for name in result.idatas)
    return ["nll", "reliability", *(["posterior-scale"] if noisy else [])]


def _write_plots(result: Result, folder: Path) -> None:
    some = ("batch/point", "batch/mcbn", "weight/point", "weight/mean-field")
    reliability = {n: p for n, p in result.predictions.items() if n in some} or result.predictions
    noisy = {name: x for name, x in result.idatas.items() if not name.endswith("/point")}
    nll = {
        method.name: [run.metrics["nll"] for run in result.runs if run.method == method.name]
        for method in result.methods
    }
    draw: dict[str, Callable[[Axes], Axes]] = {
        "nll": lambda ax: plots.plot_metric(nll, "test NLL (nats)", ax=ax),
        "reliability": lambda ax: plots.plot_reliability(reliability, ax=ax),
        "posterior-scale": lambda ax: plots.plot_posterior_scale(noisy, ax=ax),
    }
    for name in _plot_names(result):
        _save(folder / f"{name}.png", draw[name])


def _save(path: Path, draw: Callable[[Axes], Axes]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    figure.savefig(path, dpi=150)


def _report(result: Result, summary: pd.DataFrame, record: dict[str, Any]) -> str:
    headings, rows = format_rows(summary)
    settings = result.settings
    seeds = ", ".join(map(str, settings.seeds))
    spread = (
        f"Mean ± standard deviation over {len(settings.seeds)} seeds ({seeds})"
        if len(settings.seeds) > 1
        else f"One seed ({seeds}), so there is no spread"
    )
    explanations = [
        "NLL: mean negative log predictive probability, nats.",
        "ECE: expected calibration error, 15 bins.",
        "Brier: squared error summed over classes.",
        "train time: training, with the bank where one is needed, over that of `batch/point` with the "
        "same seed."
        if "relative_train_time_mean" in summary
        else "",
        "ms/draw: predicting the test data, per draw; without draws (`point`) the fixed costs of a "
        "prediction stand beside a single one.",
    ]
    plots = [f"![{name}](plots/{name}.png)" for name in _plot_names(result)]
    lines = [
        f"# Comparison on {settings.data}",
        f"`{record['command']}`",
        f"{spread}. Every method has the same splits, initial weights, batches and budget: "
        f"{settings.epochs} epochs, batch size {settings.batch_size}, Adam from {settings.lr} annealed "
        f"to 0, {settings.num_samples} draws per prediction, {settings.bank_rows} batches in a bank, "
        f"device {settings.device}.",
        "\n".join(
            "| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)
        ),
        " ".join(text for text in explanations if text),
        "## Methods",
        "\n".join(f"- `{method.name}`: {method.description}" for method in result.methods),
        "## Plots",
        *plots,
        "Reliability and posterior are of the first seed.",
        "## Files",
        "- `table.csv`: the table; `results.json`: every run, settings and versions\n"
        f"- `arviz/*.nc`: {settings.arviz_samples} draws of posterior and prior, predictive draws and "
        "log likelihood on the test data of the first seed; read with `arviz.from_netcdf`",
        "## Environment",
        ", ".join(f"{key} {value}" for key, value in record["environment"].items()),
    ]
    return "\n\n".join(lines) + "\n"


def _environment() -> dict[str, str]:
    names = ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
