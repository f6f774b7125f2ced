"""What more draws do for a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyronorm.checks import Count
from pyronorm.datasets import Split
from pyronorm.infer import predict
from pyronorm.model import NormalizationModel
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.study import Plot, Section
from pyronorm.study.table import Row, Table, frame
from pyronorm.study.training import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draws_section", "metrics_by_draws"]

_SHOWN = ("nll", "calibrated_nll")


def metrics_by_draws(
    model: NormalizationModel, posterior: Any, test: Split, numbers: Sequence[Count], seed: int
) -> dict[int, dict[str, float]]:
    """Metrics of the average over the first ``T`` draws, for each ``T``, on the same draws."""
    like = model.network.like
    outputs = predict(model, posterior, test.x.to(like.device), max(numbers), seed=seed).outputs
    assert outputs is not None
    return {T: metrics(model.likelihood.predict(outputs[:T]), test.y) for T in numbers}


def draws_section(rows: Sequence[Row]) -> Section:
    """A table and a plot of metrics by the number of draws.

    Args:
        rows: with the condition ``draws``.
    """
    table = Table(
        "By the number of draws",
        rows,
        columns("accuracy", *_SHOWN, "ece", "brier"),
        by=("method", "draws"),
        within=("draws",),
    )
    plot = Plot(
        "draws",
        "Test NLL by the number T of draws that are averaged, means over seeds and standard errors.",
        partial(_draw, rows),
        (9.0, 4.0),
    )
    return Section("Draws", "", [table], [plot])


def _draw(rows: Sequence[Row], figure: Figure) -> None:
    data = frame(rows)
    for axes, name in zip(figure.subplots(1, 2), _SHOWN, strict=True):
        for method, group in data.groupby("method", sort=False):
            values = group.groupby("draws")[name]
            error = values.sem() if group["seed"].nunique() > 1 else None
            axes.errorbar(
                values.mean().index, values.mean(), error, marker="o", capsize=3, label=method
            )
        axes.set_xscale("log", base=2)
        ticks = sorted(set(data["draws"]))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="draws T", ylabel=f"test {COLUMNS[name].heading} (nats)")
    axes.legend(fontsize="small")
