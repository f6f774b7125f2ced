"""Plots of noise and uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, Positive, checked
from pyronorm.diagnostics import BatchSizes, Disturbance, EstimationShift, RiskCurve
from pyronorm.diagnostics.arviz_labels import layers_of
from pyronorm.diagnostics.noise import moment_batch_sizes, noise_statistics
from pyronorm.display import axes_or_new as _axes
from pyronorm.errors import OptionError
from pyronorm.guides import StatisticsBank
from pyronorm.infer import History
from pyronorm.plots.style import MARKERS as _MARKERS
from pyronorm.plots.style import color as _color
from pyronorm.plots.style import layer_ticks as _layer_ticks
from pyronorm.plots.style import legend_outside as _legend_outside
from pyronorm.plots.style import refuse_nothing as _refuse_nothing
from pyronorm.plots.style import two_axes as _two_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_disturbance",
    "plot_effective_batch_size",
    "plot_elbo_trace",
    "plot_estimation_shift",
    "plot_noise_law",
    "plot_outliers",
    "plot_posterior_scale",
    "plot_rejection",
]


@checked
def plot_posterior_scale(idatas: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    r"""Posterior standard deviation of :math:`\log \text{scale}`, layer by layer.

    One point per layer and posterior: the median over channels, with a bar from the 10 % to the
    90 % quantile of the channels.

    Args:
        idatas: for each label what :func:`pyronorm.to_arviz` returned.
        ax: where to draw; None for a new figure.
    """
    _refuse_nothing("plot_posterior_scale", idatas)
    ax = _axes(ax)
    width = 0.8 / len(idatas)
    own = {
        label: np.array(layers_of(idata, "plot_posterior_scale")) for label, idata in idatas.items()
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
    _layer_ticks(ax, layers)
    ax.set_ylabel("posterior sd of log scale")
    ax.set_ylim(bottom=0)
    return _legend_outside(ax)


@checked
def plot_noise_law(
    bank: StatisticsBank, n: Positive | None = None, *, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    r"""Quantiles of batch noise against those of its law, one curve per layer.

    Left the shift times :math:`\sqrt n`, right :math:`nS^2/\sigma^2` mapped from
    :math:`\chi^2_{n-1}` to a standard normal variable, so that on both sides the law of Gaussian values
    is the diagonal. Channels of a layer are pooled.

    Args:
        bank: at least 20 rows.
        n: effective batch size; None takes each channel's own, :math:`1/\mathrm{Var}(\text{shift})`,
            and names that of the layer.
        axes: two axes to draw on; None for a new figure.
    """
    from scipy.stats import chi2, norm

    left, right = axes = _two_axes(axes)
    sizes = moment_batch_sizes(bank)
    channel = bank.space.unpack(sizes.channel_shift.value)
    shift, log_var = map(bank.space.unpack, noise_statistics(bank))
    position = 0
    for name, own in zip(bank.space.names, sizes.layer_shift.value.tolist(), strict=True):
        live = ~shift[name].isnan()[0]
        if not bool(live.any()):
            continue
        # Each channel its own, or channels that differ would look like heavy tails.
        size = channel[name][live].numpy() if n is None else np.full(int(live.sum()), float(n))
        values = (shift[name][:, live].numpy() * np.sqrt(size)).ravel()
        square = size * log_var[name][:, live].exp().numpy()
        low, high = chi2.cdf(square, size - 1), chi2.sf(square, size - 1)
        score = np.where(low < high, norm.ppf(low), -norm.ppf(high)).ravel()  # exact in both tails
        label = f"{name}, n = {own if n is None else n:,.0f}"
        share = (np.arange(min(200, len(values))) + 0.5) / min(200, len(values))
        for ax, part in ((left, values), (right, score)):
            style = {"color": _color(position), "label": label}
            ax.plot(norm.ppf(share), np.quantile(part, share), linewidth=1.5, **style)
        position += 1
    for ax, what in ((left, "shift"), (right, "$S^2$, as a normal score")):
        ax.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--", zorder=0)
        ax.set(xlabel="quantile of the law", ylabel=f"quantile of {what}")
    _legend_outside(right)
    return axes


@checked
def plot_effective_batch_size(sizes: BatchSizes, *, ax: Axes | None = None) -> Axes:
    """Effective batch size of each layer, with its interval, from means and from variances.

    Args:
        sizes: from :func:`pyronorm.diagnostics.moment_batch_sizes`.
        ax: where to draw; None for a new figure.
    """
    ax = _axes(ax)
    names = list(sizes.space.names)
    for position, (label, found) in enumerate(
        (("from shift", sizes.layer_shift), ("from log $S^2$", sizes.layer_scale))
    ):
        value, low, high = (part.numpy() for part in (found.value, found.low, found.high))
        ax.errorbar(
            np.arange(len(names)) + 0.16 * position - 0.08,
            value,
            yerr=[value - low, high - value],
            fmt=_MARKERS[position],
            markersize=5,
            capsize=3,
            color=_color(position),
            label=label,
        )
    ax.axhline(sizes.batch_size, color="0.6", linewidth=1, linestyle="--", label="examples")
    ax.set_yscale("log")
    _layer_ticks(ax, names)
    ax.set_ylabel("effective batch size")
    return _legend_outside(ax)


@checked
def plot_disturbance(
    found: Mapping[str, Sequence[Disturbance]],
    layer: str | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Normalization disturbance against batch size, one curve per normalizer.

    Args:
        found: for each label what :func:`pyronorm.diagnostics.normalization_disturbance` returned.
        layer: which layer; None for the mean over layers.
        ax: where to draw; None for a new figure.

    Raises:
        OptionError: if a result has no such layer; the message lists those it has.
    """
    _refuse_nothing("plot_disturbance", found)
    ax = _axes(ax)
    for position, (label, results) in enumerate(found.items()):
        values = []
        for result in results:
            by_layer = result.normalized
            if layer is not None and layer not in by_layer:
                raise OptionError(
                    f"plot_disturbance: {label} has no layer {layer!r}; it has {list(by_layer)}."
                )
            mean = sum(by_layer.values()) / len(by_layer)
            values.append(mean if layer is None else by_layer[layer])
        marker, color = _MARKERS[position % len(_MARKERS)], _color(position)
        sizes = [result.batch_size for result in results]
        ax.plot(sizes, values, marker=marker, markerfacecolor="none", color=color, label=label)
    every = sorted({result.batch_size for results in found.values() for result in results})
    ax.set_xscale("log")
    ax.set_xticks(every, [str(size) for size in every])
    ax.minorticks_off()
    where = "mean over layers" if layer is None else layer
    ax.set(xlabel="batch size", ylabel=rf"disturbance $\Delta/\sqrt{{d}}$, {where}")
    ax.set_ylim(bottom=0)
    return _legend_outside(ax)


@checked
def plot_estimation_shift(
    found: Mapping[str, EstimationShift], *, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Normalized estimation shift of means (left) and of variances (right), layer by layer.

    Args:
        found: for each label what :func:`pyronorm.diagnostics.estimation_shift` returned.
        axes: two axes to draw on; None for a new figure.
    """
    _refuse_nothing("plot_estimation_shift", found)
    axes = _two_axes(axes)
    names = list(dict.fromkeys(name for f in found.values() for name in f.of_mean))
    for position, (label, result) in enumerate(found.items()):
        marker, color = _MARKERS[position % len(_MARKERS)], _color(position)
        parts = (result.of_mean_normalized, result.of_var_normalized)
        for ax, values in zip(axes, parts, strict=True):
            x = [names.index(name) for name in values]
            style = {"marker": marker, "markerfacecolor": "none", "color": color}
            ax.plot(x, list(values.values()), label=label, **style)
    for ax, what in zip(axes, ("mean, in sd", "log sd"), strict=True):
        _layer_ticks(ax, names)
        ax.set_ylabel(f"estimation shift of the {what}")
        ax.set_ylim(bottom=0)
    _legend_outside(axes[1])
    return axes


@checked
def plot_rejection(curves: Mapping[str, RiskCurve], *, ax: Axes | None = None) -> Axes:
    """Risk of the examples that are kept against the share that is rejected.

    Args:
        curves: for each label what :func:`pyronorm.diagnostics.selective_risk` returned.
        ax: where to draw; None for a new figure.
    """
    _refuse_nothing("plot_rejection", curves)
    ax = _axes(ax)
    for position, (label, curve) in enumerate(curves.items()):
        text = f"{label}, AURC {curve.aurc:.3g}"
        rejected, risk = curve.rejected.cpu().numpy(), curve.risk.cpu().numpy()
        ax.plot(rejected, risk, color=_color(position), label=text)
    ax.set(xlabel="share rejected", ylabel="risk of the rest", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    return _legend_outside(ax)


@checked
def plot_outliers(
    scores: Mapping[str, Float[Tensor, " example"]],
    name: str = "score",
    *,
    bins: Count = 30,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of a score on several data sets, such as examples and outliers.

    Args:
        scores: for each label one score per example, such as the entropy of a prediction.
        name: what to write on the axis.
        bins: number of bins, the same for all.
        ax: where to draw; None for a new figure.
    """
    _refuse_nothing("plot_outliers", scores)
    ax = _axes(ax)
    values = {label: score.double().cpu().numpy() for label, score in scores.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins).tolist()
    for position, (label, value) in enumerate(values.items()):
        weights = np.full(len(value), 1 / len(value))
        style = {"color": _color(position), "label": label, "alpha": 0.5}
        ax.hist(value, edges, weights=weights, histtype="stepfilled", **style)
    ax.set(xlabel=name, ylabel="share of examples")
    return _legend_outside(ax)


@checked
def plot_elbo_trace(histories: Mapping[str, History], *, ax: Axes | None = None) -> Axes:
    """The ELBO per training example by epoch, one curve for each training run.

    With a KL weight below 1 (a warm-up) it is that of the weighted objective, drawn dashed: those
    epochs do not compare with later ones. A circle marks the epoch whose parameters were kept.

    Args:
        histories: for each label what :func:`pyronorm.fit` returned.
        ax: where to draw; None for a new figure.

    Raises:
        OptionError: if a history has no epoch.
    """
    _refuse_nothing("plot_elbo_trace", histories)
    ax = _axes(ax)
    for position, (label, history) in enumerate(histories.items()):
        if not history.epochs:
            raise OptionError(f"plot_elbo_trace: the history {label!r} has no epoch.")
        epochs = np.array([epoch.epoch for epoch in history.epochs])
        elbo = -np.array(history.losses)
        warm = np.array([epoch.kl_weight != 1 for epoch in history.epochs])
        color = _color(position)
        ax.plot(epochs, np.where(warm, np.nan, elbo), color=color, label=label)
        if warm.any():
            # Up to the first epoch at full weight, so that no gap is left.
            until = min(int(np.flatnonzero(warm)[-1]) + 2, len(epochs))
            ax.plot(epochs[:until], elbo[:until], color=color, linestyle="--", linewidth=1)
        kept = epochs == history.kept_epoch
        ax.plot(epochs[kept], elbo[kept], "o", color=color, markerfacecolor="none")
    ax.set(xlabel="epoch", ylabel="ELBO per example (nats)")
    return _legend_outside(ax)
