"""Plots of posteriors beside the truth they are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.diagnostics import Calibration
from pyronorm.display import axes_or_new
from pyronorm.errors import DataError, OptionError
from pyronorm.plots.style import color, legend_outside, refuse_nothing, two_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_correlation", "plot_marginal", "plot_ranks", "plot_spread_ratio"]


@checked
def plot_marginal(
    draws: Mapping[str, Float[Tensor, " sample"]],
    reference: Float[Tensor, " draw"],
    name: str = "latent",
    *,
    bins: Count = 30,
    ax: Axes | None = None,
) -> Axes:
    """Marginal of one latent: the reference filled, each posterior as an outline over it.

    Outlines are histograms with the bins of the reference; what lies beyond the shown range (0.1 % of
    the reference's draws on either side, and half of its width more) is left out of the picture but
    counts.

    Args:
        draws: for each label draws of the latent.
        reference: draws of the posterior itself, as from :func:`pyronorm.run_nuts`.
        name: what to write on the axis.
        bins: number of bins.
        ax: where to draw; None for a new figure.
    """
    refuse_nothing("plot_marginal", draws)
    if not reference.numel():
        raise DataError("plot_marginal: reference has no draws.")
    ax = axes_or_new(ax)
    truth = reference.double().cpu().numpy()
    low, high = np.quantile(truth, [0.001, 0.999])
    margin = (high - low) / 4
    edges = np.linspace(low - margin, high + margin, bins + 1)
    width = edges[1] - edges[0]
    share = np.histogram(truth, edges)[0] / (len(truth) * width)
    ax.stairs(share, edges, fill=True, color="0.8", label="reference")
    for position, (label, values) in enumerate(draws.items()):
        counts = np.histogram(values.double().cpu().numpy(), edges)[0]
        share = counts / (len(values) * width)
        ax.stairs(share, edges, color=color(position), linewidth=1.5, label=label)
    ax.set(xlabel=name, ylabel="density", xlim=(edges[0], edges[-1]))
    ax.set_ylim(bottom=0)
    return legend_outside(ax)


@checked
def plot_spread_ratio(
    ratios: Mapping[str, tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Standard deviation of every latent over that of the reference, a row per posterior.

    Args:
        ratios: for each label the ratios of the shifts and of the log scales.
        ax: where to draw; None for a new figure.
    """
    refuse_nothing("plot_spread_ratio", ratios)
    ax = axes_or_new(ax)
    for position, parts in enumerate(ratios.values()):
        for kind, (what, values) in enumerate(zip(("shift", "log scale"), parts, strict=True)):
            row = np.full(len(values), position + 0.36 * kind - 0.18)
            numbers = values.double().cpu().numpy()
            label = what if position == 0 else None
            ax.plot(numbers, row, "o", color=color(kind), alpha=0.35, markersize=4, label=label)
            ax.plot([float(np.median(numbers))], row[:1], "|", color=color(kind), ms=11, mew=2.5)
    ax.axvline(1.0, color="0.6", linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ax.invert_yaxis()
    ax.set_xlabel("sd over that of the reference")
    ax.set_xlim(left=0)
    ax.grid(axis="x", alpha=0.3)
    return legend_outside(ax)


@checked
def plot_correlation(
    correlation: Float[Tensor, "latent latent"],
    groups: Mapping[str, int] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """A correlation matrix, blue below 0 and red above; the diagonal is left white.

    Args:
        correlation: the matrix.
        groups: names of successive groups of latents and their sizes, to be marked on the axes.
        ax: where to draw; None for a new figure.

    Raises:
        OptionError: if the sizes do not add up to the number of latents.
    """
    size = len(correlation)
    if groups is not None and sum(groups.values()) != size:
        raise OptionError(
            f"plot_correlation: groups must add up to {size} latents, got {dict(groups)}."
        )
    ax = axes_or_new(ax)
    shown = correlation.double().cpu().numpy().copy()
    np.fill_diagonal(shown, np.nan)
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
    if groups is not None:
        ends = np.cumsum(list(groups.values()))
        for end in ends[:-1]:
            ax.axhline(end - 0.5, color="0.5", linewidth=0.5)
            ax.axvline(end - 0.5, color="0.5", linewidth=0.5)
        middles = (ends - np.array(list(groups.values())) / 2 - 0.5).tolist()
        ax.set_xticks(middles, list(groups), rotation=45, ha="right")
        ax.set_yticks(middles, list(groups))
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="correlation")
    return ax


@checked
def plot_ranks(
    calibration: Calibration, *, bins: Count = 20, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Histograms of the ranks of simulation-based calibration, one outline per channel.

    Left the shifts, right the scales. The band holds a bin's count with probability 0.99 if ranks are
    uniform. Ranks heaped up at both ends come from a posterior that is too narrow, in the middle from
    one too wide, at one end from a biased one.

    Args:
        calibration: from :func:`pyronorm.diagnostics.simulation_based_calibration`.
        bins: number of bins; it has to divide the number of possible ranks.
        axes: two axes to draw on; None for a new figure.

    Raises:
        OptionError: if the bins would hold different numbers of ranks.
    """
    from scipy.stats import binom

    axes = two_axes(axes)
    number = len(calibration.shift)
    edges = np.linspace(0, 1, bins + 1)
    low, high = binom.ppf([0.005, 0.995], number, 1 / bins)
    for ax, what in zip(axes, ("shift", "scale"), strict=True):
        counts = calibration.histogram(bins)[what]
        ax.axhspan(low, high, color="0.9", zorder=0)
        ax.axhline(number / bins, color="0.6", linewidth=1, linestyle="--", zorder=1)
        labels = calibration.labels if len(calibration.labels) <= 10 else [None] * len(counts)
        for position, (label, row) in enumerate(zip(labels, counts, strict=True)):
            ax.stairs(row.numpy(), edges, color=color(position), alpha=0.8, label=label)
        ax.set(xlabel=f"rank of the {what} among the draws", ylabel="simulations", xlim=(0, 1))
        ax.set_ylim(bottom=0)
    if len(calibration.labels) <= 10:
        legend_outside(axes[1])
    return axes
