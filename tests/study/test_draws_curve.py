"""Metrics by the number of draws, against predictions of so many draws."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

import pyronorm as pn
from pyronorm import datasets, guides, likelihoods
from pyronorm.networks import SmallConvNet
from pyronorm.study import Row, format_table
from pyronorm.study.draws_curve import draws_section, metrics_by_draws


def test_each_number_is_a_prediction_with_the_first_draws() -> None:
    torch.manual_seed(0)
    test = datasets.load("digits").subset(100, 60).test
    network = pn.convert(SmallConvNet(), pn.normalizers.Weight(), example_input=test.x[:2])
    model = pn.NormalizationModel(network, likelihoods.Categorical(), num_data=100)
    guide = guides.BatchNoise(model, 8.0)
    found = metrics_by_draws(model, guide, test, (1, 3), seed=5)
    outputs = pn.predict(model, guide, test.x, 3, seed=5).outputs
    for number in (1, 3):
        p = outputs[:number].softmax(-1).mean(0)
        nll = -p[torch.arange(60), test.y].log().mean()
        assert found[number]["nll"] == pytest.approx(float(nll), rel=1e-5)
    assert found[1]["nll"] != found[3]["nll"]


def test_the_section_compares_methods_within_a_number() -> None:
    rows = [
        Row(method, seed, {"nll": base / T + 0.01 * seed, "calibrated_nll": base}, {"draws": T})
        for method, base in (("a/x", 1.0), ("a/y", 2.0))
        for seed in range(5)
        for T in (1, 4)
    ]
    section = draws_section(rows)
    (table,), (plot,) = section.tables, section.plots
    shown = format_table(table)
    assert [line[:2] for line in shown.lines] == [
        ["a/x", "1"],
        ["a/x", "4"],
        ["a/y", "1"],
        ["a/y", "4"],
    ]
    figure = Figure()
    plot.draw(figure)
    left, right = figure.axes
    assert left.get_xscale() == "log"
    assert list(left.lines[0].get_ydata()) == pytest.approx([1.02, 0.27])
    assert "calibrated" in right.get_ylabel()
