"""The data of what is drawn, against computations of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgba

from pyronorm.errors import OptionError
from pyronorm.plots import plot_metric, plot_reliability
from tests.plots.drawn import Predicted, bars, inside, legend_labels, predicted

# reliability


def reliability_by_hand(value: Predicted, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of equal parts of the examples, sorted by confidence."""
    p, y = (part.double().numpy() for part in value)
    order = np.argsort(p.max(1))
    confidence, right = p.max(1)[order], (p.argmax(1) == y)[order]
    parts = zip(np.split(confidence, bins), np.split(right, bins), strict=True)
    means = [(c.mean(), r.mean()) for c, r in parts]
    return np.array([m[0] for m in means]), np.array([m[1] for m in means])


@pytest.mark.parametrize(("n", "bins"), [(60, 6), (120, 4), (180, None)])
def test_reliability_is_accuracy_minus_confidence(ax: Axes, n: int, bins: int | None) -> None:
    values = {"sharp": predicted(n, 3, 3.0), "flat": predicted(n, 3, 0.8)}
    options = {} if bins is None else {"bins": bins}
    assert plot_reliability(values, ax=ax, **options) is ax
    assert ax.get_lines()[0].get_ydata() == [0.0, 0.0]
    assert len(ax.containers) == 2
    for container, (label, value) in zip(ax.containers, values.items(), strict=True):
        points, ends = bars(container)
        confidence, accuracy = reliability_by_hand(value, bins or 6)
        assert container.get_label() == label
        np.testing.assert_allclose(points[:, 0], confidence, rtol=1e-5)
        np.testing.assert_allclose(points[:, 1], accuracy - confidence, rtol=1e-5, atol=1e-6)
        error = np.sqrt(accuracy * (1 - accuracy) / (n / (bins or 6)))
        np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, error, rtol=1e-5, atol=1e-6)
        assert inside(ax, *points.T)
    assert legend_labels(ax) == ["calibrated", "sharp", "flat"]
    size = n // (bins or 6)
    assert f"mean of a bin of {size} examples" in ax.get_xlabel()
    assert ax.get_ylabel() == "accuracy - confidence"
    colors = [container.lines[0].get_color() for container in ax.containers]
    assert not same_color(*colors)


def test_reliability_by_hand_small(ax: Axes) -> None:
    # Confidences .8 (half right) and .9 (all right).
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1]])
    plot_reliability({"a": (p, torch.tensor([0, 1, 0, 0]))}, bins=2, ax=ax)
    points, _ = bars(ax.containers[0])
    np.testing.assert_allclose(points, [[0.8, -0.3], [0.9, 0.1]], rtol=1e-6)


@pytest.mark.parametrize("right", [True, False])
def test_reliability_has_no_more_bins_than_examples(ax: Axes, right: bool) -> None:
    p = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
    y = p.argmax(-1) if right else p.argmin(-1)
    plot_reliability({"a": (p, y)}, ax=ax)
    points, _ = bars(ax.containers[0])
    np.testing.assert_allclose(points, [[c, right - c] for c in (0.7, 0.8, 0.9)], rtol=1e-6)
    assert inside(ax, *points.T)


# metric


def test_metric_has_a_dot_per_seed_and_a_bar_at_the_mean(ax: Axes) -> None:
    values = {
        "batch/point": [0.3, 0.1, 0.8],
        "weight/point": [0.5, 0.7],
        "weight/fixed": [0.9],
        "batch/mcbn": [0.2, 0.4, 0.45],
    }
    assert plot_metric(values, "test NLL (nats)", ax=ax) is ax
    lines = ax.get_lines()
    assert len(lines) == 8
    for position, numbers in enumerate(values.values()):
        dots, bar = lines[2 * position : 2 * position + 2]
        assert dots.get_xydata().tolist() == [[x, position] for x in numbers]
        assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
        assert bar.get_marker() == "|"
        np.testing.assert_allclose(bar.get_xydata(), [[sum(numbers) / len(numbers), position]])
        assert inside(ax, *dots.get_xydata().T)
    assert ax.get_yticks().tolist() == [0, 1, 2, 3]
    assert [text.get_text() for text in ax.get_yticklabels()] == list(values)
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first method on top
    assert ax.get_xlabel() == "test NLL (nats)"


def test_metric_colours_are_of_the_normalizer(ax: Axes) -> None:
    plot_metric({"batch/a": [1.0], "weight/a": [2.0], "batch/b": [3.0], "own": [4.0]}, "m", ax=ax)
    colours = [to_rgba(line.get_color()) for line in ax.get_lines()]
    by_row = [{colours[2 * i], colours[2 * i + 1]} for i in range(4)]
    assert all(len(row) == 1 for row in by_row)
    batch, weight, batch_too, own = (row.pop() for row in by_row)
    assert batch == batch_too
    assert len({batch, weight, own}) == 3


def test_metric_joins_the_seeds_and_marks_the_baseline(ax: Axes) -> None:
    values = {"plain": [0.3, 0.1], "other": [0.2, 0.4]}
    plot_metric(values, "m", baseline="plain", ax=ax)
    line, *seeds = ax.get_lines()[:3]
    assert line.get_xdata() == [0.2, 0.2]
    assert [seed.get_xydata().tolist() for seed in seeds] == [
        [[0.3, 0], [0.2, 1]],
        [[0.1, 0], [0.4, 1]],
    ]
    assert len(ax.get_lines()) == 3 + 4


def test_metric_joins_no_lists_of_different_seeds(ax: Axes) -> None:
    plot_metric({"plain": [0.3, 0.1], "other": [0.2]}, "m", baseline="plain", ax=ax)
    assert len(ax.get_lines()) == 1 + 4


def test_metric_refuses_a_baseline_that_is_not_there(ax: Axes) -> None:
    with pytest.raises(OptionError, match="none of the methods plain"):
        plot_metric({"plain": [0.3]}, "m", baseline="plane", ax=ax)
