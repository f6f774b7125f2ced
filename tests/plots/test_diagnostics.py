"""The data of what is drawn, against computations of their own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from torch import nn

import pyronorm as pn
from pyronorm import plots
from pyronorm.diagnostics import Disturbance, EstimationShift
from pyronorm.errors import OptionError
from pyronorm.infer import Epoch, History
from pyronorm.plots import plot_metric, plot_posterior_scale, plot_reliability
from tests.plots.drawn import bars, inside, legend_labels, predicted

# posterior scale


LAYERS = {"stem.bn": 4, "layer1.0.bn1": 6, "layer1.0.bn2": 3}


def fake(layers: dict[str, int], std: float, chains: int = 2, draws: int = 9) -> dict[str, Any]:
    names = [name for name, channels in layers.items() for _ in range(channels)]
    log_scale = 0.3 + std * torch.randn(chains, draws, len(names)).double().numpy()
    variables = {"scale": (("chain", "draw", "channel"), np.exp(log_scale))}
    constant = xr.Dataset({"layer": ("channel", names)})
    return {"posterior": xr.Dataset(variables), "constant_data": constant}


def quantile(values: list[float], q: float) -> float:
    """By linear interpolation between the sorted values."""
    values = sorted(values)
    position = q * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


def test_posterior_scale_is_the_spread_of_log_scale(ax: Axes) -> None:
    idatas = {"narrow": fake(LAYERS, 0.05), "wide": fake(LAYERS, 0.4), "mid": fake(LAYERS, 0.2)}
    assert plot_posterior_scale(idatas, ax=ax) is ax
    assert len(ax.containers) == 3
    for container, (label, idata) in zip(ax.containers, idatas.items(), strict=True):
        points, ends = bars(container)
        assert container.get_label() == label
        log_scale = np.log(idata["posterior"]["scale"].values).reshape(18, -1)
        std = ((log_scale - log_scale.mean(0)) ** 2).mean(0) ** 0.5
        names = idata["constant_data"]["layer"].values
        for position, layer in enumerate(LAYERS):
            own = [float(s) for s, name in zip(std, names, strict=True) if name == layer]
            assert len(own) == LAYERS[layer]
            assert points[position, 1] == pytest.approx(quantile(own, 0.5))
            expected = [quantile(own, 0.1), quantile(own, 0.9)]
            assert sorted(ends[position]) == pytest.approx(expected)
        assert inside(ax, points[:, 0], ends[:, 1])
    assert legend_labels(ax) == list(idatas)
    assert [text.get_text() for text in ax.get_xticklabels()] == list(LAYERS)
    assert ax.get_ylim()[0] == 0
    assert ax.get_xlabel() == "layer"
    assert ax.get_ylabel() == "posterior sd of log scale"


def test_posterior_scale_points_stand_around_their_layer(ax: Axes) -> None:
    plot_posterior_scale({name: fake(LAYERS, 0.1) for name in "abcd"}, ax=ax)
    assert ax.get_xticks().tolist() == [0, 1, 2]
    x = np.array([bars(container)[0][:, 0] for container in ax.containers])
    np.testing.assert_allclose(x - [0, 1, 2], np.outer([-0.3, -0.1, 0.1, 0.3], np.ones(3)))


def test_posterior_scale_of_exported_guides(ax: Axes) -> None:
    network = pn.convert(
        nn.Sequential(
            *(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()),
            *(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
        )
    )
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=10)
    guide = pn.guides.MeanField(model)
    std = torch.tensor([0.1] * 5 + [0.5] * 3)
    guide.log_scale_log_std.data.copy_(std.log())
    idatas = {
        "learned": pn.to_arviz(model, guide, num_samples=4000),
        "none": pn.to_arviz(model, pn.guides.Point(model), num_samples=5),
    }
    plot_posterior_scale(idatas, ax=ax)
    (learned, _), (none, ends) = (bars(container) for container in ax.containers)
    # The sd of an sd of 4000 draws is 1.1 %.
    np.testing.assert_allclose(learned[:, 1], [0.1, 0.5], rtol=0.06)
    assert (none[:, 1] == 0).all()
    assert (ends == 0).all()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "4"]


@pytest.mark.parametrize(("number", "rotation"), [(7, 0), (8, 90)])
def test_many_layers_have_upright_labels(ax: Axes, number: int, rotation: float) -> None:
    plot_posterior_scale({"a": fake({f"bn{i}": 2 for i in range(number)}, 0.1)}, ax=ax)
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {rotation}


def test_posterior_scale_of_networks_with_different_layers(ax: Axes) -> None:
    idatas = {"three": fake({"x": 3, "y": 3, "z": 3}, 0.1), "two": fake({"y": 3, "w": 3}, 0.5)}
    try:
        plot_posterior_scale(idatas, ax=ax)
    except pn.errors.PyronormError:
        return  # refused: also right
    labels = [text.get_text() for text in ax.get_xticklabels()]
    for container, idata in zip(ax.containers, idatas.values(), strict=True):
        points, _ = bars(container)
        layers = list(dict.fromkeys(idata["constant_data"]["layer"].values))
        assert [labels[round(x)] for x in points[:, 0]] == layers


def test_legend_hides_no_point() -> None:
    torch.manual_seed(0)  # whether a point is in the way depends on the draws
    _, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    idatas = {f"weight/method-{i}": fake(LAYERS, 0.1 + 0.005 * i) for i in range(12)}
    plot_posterior_scale(idatas, ax=ax)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    for container in ax.containers:
        points, ends = bars(container)
        for (x, _), pair in zip(points, ends, strict=True):
            for y in np.linspace(*pair, 9):
                assert not legend.contains(*ax.transData.transform((x, y)))


def test_long_layer_names_do_not_overlap() -> None:
    _, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    plot_posterior_scale({"a": fake({f"layer{i}.0.downsample.1": 2 for i in range(6)}, 0.1)}, ax=ax)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_colours_tell_all_posteriors_apart(ax: Axes) -> None:
    plot_posterior_scale({str(i): fake(LAYERS, 0.1) for i in range(12)}, ax=ax)
    colours = {to_rgba(container.lines[0].get_color()) for container in ax.containers}
    assert len(colours) == 12


# axes


def draw(which: str, ax: Axes | None = None) -> Axes:
    if which == "metric":
        return plot_metric({"a": [0.1, 0.2]}, "m", ax=ax)
    if which == "reliability":
        return plot_reliability({"a": predicted(20, 3, 1.0)}, ax=ax)
    return plot_posterior_scale({"a": fake(LAYERS, 0.1)}, ax=ax)


@pytest.mark.parametrize("which", ["metric", "reliability", "posterior"])
def test_a_new_figure_without_axes(which: str) -> None:
    plt.close("all")
    ax = draw(which)
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.figure.axes == [ax]
    assert tuple(ax.figure.get_size_inches()) == (7, 4.5)


@pytest.mark.parametrize("which", ["metric", "reliability", "posterior"])
def test_given_axes_and_no_others_are_used(which: str) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(which, right) is right
    assert plt.get_fignums() == [figure.number]
    assert not left.has_data()
    assert right.has_data()
    figure.canvas.draw()  # nothing warns


# diagnostics


@pytest.fixture
def two() -> Iterator[list[Axes]]:
    figure, axes = plt.subplots(1, 2)
    yield list(axes)
    plt.close(figure)


def gaussian_bank(rows: int = 400, n: int = 12) -> pn.StatisticsBank:
    """Three layers, the second one without batch statistics."""
    layers = tuple(pn.latents.LatentLayer(name, 3, "Batch") for name in ("a", "b", "c"))
    x = 2 + 3 * torch.randn(rows, n, 9, dtype=torch.double)
    mean, var = x.mean(1), x.var(1, correction=0)
    mean[:, 3:6] = var[:, 3:6] = torch.nan
    one = torch.ones(9, dtype=torch.double)
    space = pn.LatentSpace(layers)
    return pn.StatisticsBank(space, n, mean, var, 2 * one, 9 * one, 1e-5 * one)


@pytest.mark.parametrize("n", [12.0, None])
def test_noise_law_of_gaussian_values_is_the_diagonal(two: list[Axes], n: float | None) -> None:
    assert list(plots.plot_noise_law(gaussian_bank(), n, axes=two)) == two
    for ax in two:
        curves = [line for line in ax.lines if len(line.get_xdata()) == 200]
        assert [str(line.get_label()).split(",")[0] for line in curves] == ["a", "c"]
        for line in curves:
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            body = np.abs(x) < 1.5
            assert np.abs(x - y)[body].max() < 0.2  # 1,200 values: about 4 standard errors
    if n is not None:
        assert legend_labels(two[1]) == ["a, n = 12", "c, n = 12"]


def test_noise_law_leaves_the_diagonal_at_another_n(two: list[Axes]) -> None:
    plots.plot_noise_law(gaussian_bank(), 48, axes=two)
    for line in two[0].lines[:2]:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert np.polyfit(x, y, 1)[0] == pytest.approx(2, rel=0.1)  # sqrt(48 / 12)


def test_effective_batch_size_draws_values_and_intervals(ax: Axes) -> None:
    sizes = pn.diagnostics.moment_batch_sizes(gaussian_bank())
    assert plots.plot_effective_batch_size(sizes, ax=ax) is ax
    bars = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    for bar, found in zip(bars, (sizes.layer_shift, sizes.layer_scale), strict=True):
        np.testing.assert_allclose(bar.lines[0].get_ydata(), found.value.numpy())
        segments = bar.lines[2][0].get_segments()
        for i in (0, 2):
            assert segments[i][:, 1].tolist() == pytest.approx(
                [float(found.low[i]), float(found.high[i])]
            )
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    assert ax.get_yscale() == "log"


def test_disturbance_against_batch_size(ax: Axes) -> None:
    found = {
        label: [
            Disturbance(size, {"a": torch.full((3,), k / size), "b": torch.ones(3)}, torch.ones(3),
                        {"a": 4, "b": 9}, 1)
            for size in (8, 32)
        ]
        for label, k in (("Batch", 16.0), ("Whitening", 64.0))
    }  # fmt: skip
    plots.plot_disturbance(found, "a", ax=ax)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1, 0.25], [4, 1]]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[8, 32]] * 2
    assert legend_labels(ax) == ["Batch", "Whitening"]
    every = plots.plot_disturbance(found)
    assert every.lines[0].get_ydata().tolist() == pytest.approx(
        [(1 + 1 / 3) / 2, (0.25 + 1 / 3) / 2]
    )
    with pytest.raises(OptionError, match=r"Batch has no layer 'c'; it has \['a', 'b'\]"):
        plots.plot_disturbance(found, "c", ax=ax)


def test_estimation_shift_by_layer(two: list[Axes]) -> None:
    space, one = gaussian_bank().space, torch.ones(9)
    mean = torch.cat([torch.full((3,), 0.5), torch.full((3,), torch.nan), torch.full((3,), 2.0)])
    shift = EstimationShift(space, mean, 4 + 0 * mean, 0 * mean, 1 + 0 * mean, 0 * one)
    plots.plot_estimation_shift({"test": shift}, axes=two)
    assert two[0].lines[0].get_ydata().tolist() == pytest.approx([0.25, 1.0])
    assert two[1].lines[0].get_ydata().tolist() == pytest.approx(
        list(shift.of_var_normalized.values())
    )
    with pytest.raises(OptionError, match="two axes, got 1"):
        plots.plot_estimation_shift({"test": shift}, axes=two[:1])


def test_rejection_draws_the_curve(ax: Axes) -> None:
    curve = pn.diagnostics.selective_risk(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 1, 2]))
    plots.plot_rejection({"mine": curve}, ax=ax)
    assert ax.lines[0].get_ydata().tolist() == curve.risk.tolist()
    assert ax.lines[0].get_xdata().tolist() == curve.rejected.tolist()
    assert legend_labels(ax) == ["mine, AURC 0.5"]


def test_outliers_are_shares_in_common_bins(ax: Axes) -> None:
    plots.plot_outliers({"in": torch.rand(50), "out": 3 + torch.rand(7)}, "entropy", bins=8, ax=ax)
    patches = ax.patches
    assert len(patches) == 2
    for patch in patches:
        assert np.ptp(patch.get_xy()[:, 0]) > 3  # the edges of both
        area = patch.get_xy()
        step = float(np.diff(np.unique(area[:, 0])).mean())
        x, y = area[:, 0], area[:, 1]
        total = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2  # the polygon's area
        assert total == pytest.approx(step, rel=1e-6)
    assert ax.get_xlabel() == "entropy"


def test_elbo_trace_is_minus_the_loss_and_marks_the_epoch_kept(ax: Axes) -> None:
    losses = [3.0, 2.0, 1.5, 1.6]
    plain = History([Epoch(i + 1, loss, 1.0, 0.1, 1.0) for i, loss in enumerate(losses)], 3)
    weights = [0.2, 0.6, 1.0, 1.0]
    warm = History(
        [Epoch(i + 1, losses[i], w, 0.1, 1.0) for i, w in enumerate(weights)], kept_epoch=4
    )
    assert plots.plot_elbo_trace({"plain": plain, "warm": warm}, ax=ax) is ax
    first, kept, full, dashed, last = ax.lines
    assert first.get_xdata().tolist() == [1, 2, 3, 4]
    assert first.get_ydata().tolist() == [-3, -2, -1.5, -1.6]
    assert (kept.get_xdata().tolist(), kept.get_ydata().tolist()) == ([3], [-1.5])
    np.testing.assert_array_equal(full.get_ydata(), [np.nan, np.nan, -1.5, -1.6])
    assert dashed.get_linestyle() == "--"
    assert dashed.get_ydata().tolist() == [-3, -2, -1.5]
    assert last.get_xdata().tolist() == [4]
    assert legend_labels(ax) == ["plain", "warm"]
    with pytest.raises(OptionError, match="the history 'empty' has no epoch"):
        plots.plot_elbo_trace({"empty": History()}, ax=ax)


def test_nothing_is_no_plot():
    for plot in (plots.plot_reliability, plot_posterior_scale, plots.plot_spread_ratio):
        with pytest.raises(OptionError, match="there is nothing to draw"):
            plot({})
