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
    bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against confidence of the most probable class.

    A calibrated predictor lies on the diagonal; below it, it is overconfident. Bins hold equal
    numbers of examples, so that each point is equally certain.

    Args:
        predictions: for each label the predictive probabilities and the true classes.
        bins: number of points per curve, at most.
        ax: where to draw; None for a new figure.
    """
    from sklearn.calibration import calibration_curve

    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    lowest = 1.0
    for color, (label, (probabilities, y)) in enumerate(predictions.items()):
        confidence, predicted = probabilities.max(-1)
        right = (predicted == y).cpu().numpy()
        if right.all() or not right.any():
            # One kind of outcome only: a single point says all there is.
            accuracy, mean = np.array([right.mean()]), np.array([float(confidence.mean())])
        else:
            accuracy, mean = calibration_curve(
                right, confidence.clamp(0, 1).cpu().numpy(), n_bins=bins, strategy="quantile"
            )
        ax.plot(mean, accuracy, marker="o", markersize=4, color=f"C{color}", label=label)
        lowest = min(lowest, float(mean.min()), float(accuracy.min()))
    ax.set(
        xlabel="confidence of the predicted class",
        ylabel="accuracy",
        xlim=(max(0.0, lowest - 0.05), 1.01),
        ylim=(max(0.0, lowest - 0.05), 1.01),
    )
    ax.legend(fontsize="small")
    return ax


def plot_posterior_scale(idatas: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    r"""Posterior standard deviation of :math:`\log \text{scale}`, layer by layer.

    One point per layer and posterior: the median over channels, with a bar from the 10 % to the 90 %
    quantile of the channels.

    Args:
        idatas: for each label what :func:`pyronorm.to_arviz` returned.
        ax: where to draw; None for a new figure.
    """
    ax = _axes(ax)
    width = 0.8 / max(1, len(idatas))
    layers: list[str] = []
    for position, (label, idata) in enumerate(idatas.items()):
        posterior = idata["posterior"]
        std = np.log(posterior["scale"].values).std(axis=(0, 1))
        names = np.asarray(posterior["layer"].values, dtype=str)
        layers = list(dict.fromkeys(names.tolist()))
        low, middle, high = (
            np.array([np.quantile(std[names == layer], q) for layer in layers])
            for q in (0.1, 0.5, 0.9)
        )
        x = np.arange(len(layers)) + (position + 0.5) * width - 0.4
        ax.errorbar(
            x,
            middle,
            yerr=[middle - low, high - middle],
            fmt="o",
            markersize=4,
            label=label,
            color=f"C{position}",
        )
    ax.set_xticks(range(len(layers)), layers, rotation=0 if len(layers) < 8 else 90)
    ax.set(xlabel="layer", ylabel="posterior sd of log scale")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small")
    return ax


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
    ax.set_xlabel(name)
    ax.grid(axis="x", alpha=0.3)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.5), layout="constrained")[1]
