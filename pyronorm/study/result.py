"""The outcome of a comparison: table, files, plots and a report."""

from __future__ import annotations

import json
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyronorm.study.compare import Settings

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
        predict_seconds: one pass over the test data for one draw, the best of three.
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
        folder: where to write; made if it does not exist.
        command: the command that produced it, for the report.
    """
    (folder / "arviz").mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    summary = table(result)
    summary.to_csv(folder / "table.csv")
    record = {
        "command": command,
        "settings": asdict(result.settings),
        "environment": _environment(),
        "runs": [asdict(run) for run in result.runs],
    }
    (folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, idata in result.idatas.items():
        idata.to_netcdf(str(folder / "arviz" / f"{name.replace('/', '-')}.nc"))
    _write_plots(result, folder / "plots")
    (folder / "report.md").write_text(_report(result, summary, record), encoding="utf-8")


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


def _write_plots(result: Result, folder: Path) -> None:
    reliability = {
        name: value
        for name, value in result.predictions.items()
        if name in ("batch/point", "batch/mcbn", "weight/point", "weight/mean-field")
    } or result.predictions
    noisy = {name: x for name, x in result.idatas.items() if not name.endswith("/point")}
    nll = {
        method.name: [run.metrics["nll"] for run in result.runs if run.method == method.name]
        for method in result.methods
    }
    _save(folder / "reliability.png", lambda ax: plots.plot_reliability(reliability, ax=ax))
    _save(folder / "nll.png", lambda ax: plots.plot_metric(nll, "test NLL (nats)", ax=ax))
    if noisy:
        _save(
            folder / "posterior-scale.png",
            lambda ax: plots.plot_posterior_scale(noisy, ax=ax),
        )


def _save(path: Path, draw: Callable[[Axes], Axes]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    figure.savefig(path, dpi=150)


def _report(result: Result, summary: pd.DataFrame, record: dict[str, Any]) -> str:
    headings, rows = format_rows(summary)
    lines = [
        f"# Comparison on {result.settings.data}",
        "",
        f"`{record['command']}`",
        "",
        f"Mean ± standard deviation over {len(result.settings.seeds)} seeds "
        f"({', '.join(map(str, result.settings.seeds))}); every method has the same splits, initial "
        f"weights, batches and budget: {result.settings.epochs} epochs, batch size "
        f"{result.settings.batch_size}, Adam from {result.settings.lr}, "
        f"{result.settings.num_samples} draws per prediction.",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "NLL: mean negative log predictive probability, nats. ECE: expected calibration error, 15 "
        "bins. Brier: summed over classes. Training time: relative to `batch/point` with the same "
        "seed. ms per draw: one pass over the test data with one draw.",
        "",
        "## Methods",
        "",
        *(f"- `{method.name}`: {method.description}" for method in result.methods),
        "",
        "## Plots",
        "",
        *(
            f"![{path.stem}](plots/{path.name})\n"
            for path in (Path("nll.png"), Path("reliability.png"), Path("posterior-scale.png"))
            if path.stem != "posterior-scale" or any("/point" not in n for n in result.idatas)
        ),
        "Reliability and posterior are of the first seed.",
        "",
        "## Files",
        "",
        "- `table.csv`: the table; `results.json`: every run, settings and versions",
        "- `arviz/*.nc`: posterior, prior, predictive draws and log likelihood on the test data of "
        "the first seed; read with `arviz.from_netcdf`",
        "",
        "## Environment",
        "",
        ", ".join(f"{key} {value}" for key, value in record["environment"].items()),
        "",
    ]
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    names = ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
