"""Plots. Each returns the matplotlib axes it drew on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_metric", "plot_posterior_scale", "plot_reliability"]


def plot_reliability(
    predictions: Mapping[str, tuple[Float[Tensor, "example classes"], Int[Tensor, " example"]]],
    *,
    bins: int = 6,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy minus confidence of the most probable class, against confidence.

    A calibrated predictor lies on the line at 0; below it, it is overconfident. Bins hold equal
    numbers of examples; bars are one binomial standard error of the accuracy.

    Args:
        predictions: for each label the predictive probabilities and the true classes.
        bins: number of points per curve, at most the number of examples.
        ax: where to draw; None for a new figure.
    """
    ax = _axes(ax)
    ax.axhline(0.0, color="0.6", linewidth=1, linestyle="--", label="calibrated")
    for position, (label, (probabilities, y)) in enumerate(predictions.items()):
        confidence, predicted = (value.cpu() for value in probabilities.max(-1))
        order = confidence.argsort(stable=True)
        right = (predicted == y.cpu())[order].double()
        parts = min(bins, len(order))
        mean = [float(part.mean()) for part in confidence[order].double().tensor_split(parts)]
        accuracy = np.array([float(part.mean()) for part in right.tensor_split(parts)])
        count = np.array([len(part) for part in right.tensor_split(parts)])
        ax.errorbar(
            mean,
            accuracy - mean,
            yerr=np.sqrt(accuracy * (1 - accuracy) / count),
            marker=_MARKERS[position % len(_MARKERS)],
            markerfacecolor="none",
            capsize=2,
            color=_color(position),
            alpha=0.8,
            label=label,
        )
    ax.set(xlabel="confidence of the predicted class", ylabel="accuracy - confidence")
    return _legend_outside(ax)


def plot_posterior_scale(idatas: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    r"""Posterior standard deviation of :math:`\log \text{scale}`, layer by layer.

    One point per layer and posterior: the median over channels, with a bar from the 10 % to the
    90 % quantile of the channels.

    Args:
        idatas: for each label what :func:`pyronorm.to_arviz` returned.
        ax: where to draw; None for a new figure.
    """
    ax = _axes(ax)
    width = 0.8 / max(1, len(idatas))
    own = {
        label: np.asarray(idata["posterior"]["layer"].values, dtype=str)
        for label, idata in idatas.items()
    }
    layers = list(dict.fromkeys(name for names in own.values() for name in names.tolist()))
    for position, (label, idata) in enumerate(idatas.items()):
        std = np.log(idata["posterior"]["scale"].values).std(axis=(0, 1))
        mine = [layer for layer in layers if layer in own[label]]
        low, middle, high = (
            np.array([np.quantile(std[own[label] == layer], q) for layer in mine])
            for q in (0.1, 0.5, 0.9)
        )
        x = np.array([layers.index(layer) for layer in mine]) + (position + 0.5) * width - 0.4
        ax.errorbar(
            x,
            middle,
            yerr=[middle - low, high - middle],
            fmt=_MARKERS[position % len(_MARKERS)],
            markersize=4,
            label=label,
            color=_color(position),
        )
    for boundary in range(1, len(layers)):
        ax.axvline(boundary - 0.5, color="0.9", linewidth=1, zorder=0)
    upright = len(layers) >= 8 or sum(map(len, layers)) > 60
    ax.set_xticks(range(len(layers)), layers, rotation=90 if upright else 0)
    ax.set(xlabel="layer", ylabel="posterior sd of log scale")
    ax.set_ylim(bottom=0)
    return _legend_outside(ax)


def plot_metric(
    values: Mapping[str, Sequence[float]], name: str, *, ax: Axes | None = None
) -> Axes:
    """One metric for several methods: every seed a dot, the mean a bar.

    Args:
        values: for each method one value per seed.
        name: what to write on the axis.
        ax: where to draw; None for a new figure.
    """
    ax = _axes(ax)
    for position, (label, numbers) in enumerate(values.items()):
        group = label.split("/")[0]
        color = f"C{list(dict.fromkeys(x.split('/')[0] for x in values)).index(group)}"
        row = np.full(len(numbers), position)
        ax.plot(numbers, row, "o", color=color, alpha=0.6, markersize=5)
        ax.plot([float(np.mean(numbers))], [position], "|", color=color, markersize=18, mew=2.5)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    every = [number for numbers in values.values() for number in numbers]
    if min(every) > 0 and max(every) > 10 * min(every):
        ax.set_xscale("log")
    ax.set_xlabel(name)
    ax.grid(axis="x", alpha=0.3)
    return ax


_MARKERS = "osD^v<>Phd"


def _color(position: int) -> Any:
    # Ten strong colours, then the ten pale ones beside them.
    import matplotlib as mpl

    palette = mpl.color_sequences["tab20"]
    return palette[(2 * position) % 20 + (position // 10) % 2]


def _legend_outside(ax: Axes) -> Axes:
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.5), layout="constrained")[1]
