"""The data of what is drawn, against computations of their own."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.patches import StepPatch

from pyronorm.diagnostics import Calibration
from pyronorm.errors import OptionError
from pyronorm.plots import plot_correlation, plot_marginal, plot_ranks, plot_spread_ratio


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")


def stairs(ax) -> list[StepPatch]:
    return [patch for patch in ax.patches if isinstance(patch, StepPatch)]


def test_marginals_are_densities_over_the_same_bins():
    reference = torch.randn(4000)
    draws = {"narrow": 0.5 * torch.randn(900), "far": torch.full((50,), 99.0)}
    ax = plot_marginal(draws, reference, "shift of bn1[3]", bins=24)
    filled, narrow, far = stairs(ax)
    values, edges, _ = narrow.get_data()
    low, high = np.quantile(reference.double().numpy(), [0.001, 0.999])
    np.testing.assert_allclose(edges[[0, -1]], [low - (high - low) / 4, high + (high - low) / 4])
    assert len(values) == 24
    assert values.sum() * (edges[1] - edges[0]) == pytest.approx(1)
    expected = np.histogram(draws["narrow"].numpy(), edges)[0] / 900 / (edges[1] - edges[0])
    np.testing.assert_allclose(values, expected)
    assert values.max() > 1.5 * filled.get_data().values.max()
    assert far.get_data().values.sum() == 0  # beyond the picture, but counted
    assert ax.get_xlabel() == "shift of bn1[3]"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["reference", "narrow", "far"]


def test_spread_ratios():
    ratios = {
        "a": (torch.tensor([0.5, 0.7, 0.9]), torch.tensor([1.5, 1.0, 1.25])),
        "b": (torch.ones(3),) * 2,
    }
    ax = plot_spread_ratio(ratios)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    medians = [line for line in ax.lines if line.get_marker() == "|"]
    assert [line.get_xdata().tolist() for line in dots[:2]] == [
        pytest.approx([0.5, 0.7, 0.9]),
        [1.5, 1.0, 1.25],
    ]
    assert [float(line.get_xdata()[0]) for line in medians] == pytest.approx([0.7, 1.25, 1.0, 1.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [round(float(line.get_ydata()[0])) for line in dots] == [0, 0, 1, 1]
    assert ax.yaxis_inverted()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["shift", "log scale"]


def test_correlation_matrix():
    matrix = torch.tensor([[1.0, 0.4, 0.0], [0.4, 1.0, -0.7], [0.0, -0.7, 1.0]])
    ax = plot_correlation(matrix, {"shift": 1, "log scale": 2})
    (image,) = ax.images
    shown = image.get_array()
    assert np.isnan(np.diag(shown.filled(np.nan))).all()
    assert shown[0, 1] == pytest.approx(0.4)
    assert shown[2, 1] == pytest.approx(-0.7)
    assert image.get_clim() == (-1, 1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["shift", "log scale"]
    assert ax.get_xticks().tolist() == [0.0, 1.5]
    assert ax.lines[0].get_ydata()[0] == 0.5
    assert matrix[0, 0] == 1
    with pytest.raises(OptionError, match="add up to 3 latents"):
        plot_correlation(matrix, {"shift": 1})


@pytest.mark.parametrize("channels", [2, 11])
def test_ranks(channels):
    ranks = torch.randint(20, (80, channels))
    found = Calibration(ranks, 19 - ranks, 19, tuple(f"bn[{c}]" for c in range(channels)))
    left, right = plot_ranks(found, bins=5)
    for ax, name in ((left, "shift"), (right, "scale")):
        counts = [patch.get_data().values for patch in stairs(ax)]
        np.testing.assert_array_equal(counts, found.histogram(5)[name].numpy())
        assert name in ax.get_xlabel()
    band = left.patches[0].get_extents().transformed(left.transData.inverted())
    low, high = scipy.stats.binom.ppf([0.005, 0.995], 80, 0.2)
    assert (band.y0, band.y1) == pytest.approx((low, high))
    legend = right.get_legend()
    assert (legend is None) == (channels > 10)  # too many to be told apart
    with pytest.raises(OptionError, match="divide the 20 possible ranks, got 6"):
        plot_ranks(found, bins=6)
    with pytest.raises(OptionError, match="needs two axes, got 1"):
        plot_ranks(found, bins=5, axes=[left])
