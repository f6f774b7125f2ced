"""Plots of how well methods predict: reliability, and one metric for several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.display import axes_or_new
from pyronorm.errors import DataError, OptionError
from pyronorm.plots.style import MARKERS, color, legend_outside, refuse_nothing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_metric", "plot_reliability"]

_SURE = 1 - 1e-5
_TICKS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)


@checked
def plot_reliability(
    predictions: Mapping[str, tuple[Float[Tensor, "example classes"], Int[Tensor, " example"]]],
    *,
    bins: Count = 6,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy minus confidence of the most probable class, against confidence.

    A calibrated predictor lies on the line at 0; below it, it is overconfident. Bins hold equal
    numbers of examples; bars are one binomial standard error of the accuracy. The confidence is drawn by
    its log odds, since most examples of a trained network have one near 1; above 0.99999 it is drawn
    there.

    Args:
        predictions: for each label the predictive probabilities and the true classes.
        bins: number of points per curve, at most the number of examples.
        ax: where to draw; None for a new figure.
    """
    refuse_nothing("plot_reliability", predictions)
    ax = axes_or_new(ax)
    ax.axhline(0.0, color="0.6", linewidth=1, linestyle="--", label="calibrated")
    sizes: set[int] = set()
    for position, (label, (probabilities, y)) in enumerate(predictions.items()):
        total = probabilities.sum(-1)
        if not bool(((total - 1).abs() < 1e-3).all() & (probabilities >= 0).all()):
            raise DataError(
                f"plot_reliability: the values of {label!r} are no probabilities, which add up to 1. Of "
                "logits take the softmax."
            )
        confidence, predicted = (value.cpu() for value in probabilities.max(-1))
        order = confidence.argsort(stable=True)
        right = (predicted == y.cpu())[order].double()
        parts = min(bins, len(order))
        mean = [float(part.mean()) for part in confidence[order].double().tensor_split(parts)]
        accuracy = np.array([float(part.mean()) for part in right.tensor_split(parts)])
        count = np.array([len(part) for part in right.tensor_split(parts)])
        ax.errorbar(
            np.minimum(mean, _SURE),
            accuracy - mean,
            yerr=np.sqrt(accuracy * (1 - accuracy) / count),
            marker=MARKERS[position % len(MARKERS)],
            markerfacecolor="none",
            capsize=2,
            color=color(position),
            alpha=0.8,
            label=label,
        )
        sizes |= set(count.tolist())
    low, high = ax.get_xlim()
    ax.set_xscale("logit", nonpositive="clip")
    ax.set_xticks([tick for tick in _TICKS if low < tick < high] or [0.5], minor=False)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    examples = " or ".join(f"{size:,}" for size in sorted(sizes))
    ax.set(
        xlabel=f"confidence of the predicted class (mean of a bin of {examples} examples)",
        ylabel="accuracy - confidence",
    )
    return legend_outside(ax)


@checked
def plot_metric(
    values: Mapping[str, Sequence[float]],
    name: str,
    *,
    baseline: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One metric for several methods: every seed a dot, the mean a bar.

    With a baseline a thin line joins the values of each seed, and a dashed one marks its mean.

    Args:
        values: for each method one value per seed, in the same order of seeds if there is a baseline;
            only lists of one length are joined.
        name: what to write on the axis.
        baseline: the method that the others are compared with.
        ax: where to draw; None for a new figure.

    Raises:
        OptionError: if the baseline is none of the methods.
    """
    refuse_nothing("plot_metric", values)
    if baseline is not None and baseline not in values:
        raise OptionError(
            f"plot_metric: baseline={baseline!r} is none of the methods {', '.join(values)}."
        )
    ax = axes_or_new(ax)
    if baseline is not None:
        ax.axvline(float(np.mean(values[baseline])), color="0.5", linestyle="--", lw=1, zorder=0)
        if len({len(numbers) for numbers in values.values()}) == 1:
            for seed in zip(*values.values(), strict=True):
                ax.plot(seed, range(len(seed)), color="0.8", lw=0.8, zorder=1)
    for position, (label, numbers) in enumerate(values.items()):
        group = label.split("/")[0]
        own = f"C{list(dict.fromkeys(x.split('/')[0] for x in values)).index(group)}"
        row = np.full(len(numbers), position)
        ax.plot(numbers, row, "o", color=own, alpha=0.6, markersize=5)
        ax.plot([float(np.mean(numbers))], [position], "|", color=own, markersize=18, mew=2.5)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    every = [number for numbers in values.values() for number in numbers]
    if min(every) > 0 and max(every) > 10 * min(every):
        ax.set_xscale("log")
    ax.set_xlabel(name)
    ax.grid(axis="x", alpha=0.3)
    return ax
