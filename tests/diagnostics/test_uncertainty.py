"""Uncertainty metrics against loops, integrals, closed forms and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

import pyronorm as pn
from pyronorm.diagnostics import (
    adaptive_ece,
    crps_normal_mixture,
    crps_samples,
    out_of_distribution,
    probabilistic_regression_metrics,
    selective_risk,
)
from pyronorm.errors import DataError, OptionError, ShapeError
from tests.diagnostics.test_metrics import GivenDraws, make_model


@pytest.mark.parametrize("bins", [1, 4, 7, 50])
def test_adaptive_ece_is_its_definition(bins):
    p = (3 * torch.randn(50, 4, dtype=torch.double)).softmax(-1)
    y = torch.randint(4, (50,))
    pairs = sorted(
        (float(row.max()), int(row.argmax()) == int(c)) for row, c in zip(p, y, strict=True)
    )
    expected = 0.0
    for part in np.array_split(np.array(pairs), bins):
        expected += len(part) / 50 * abs(part[:, 1].mean() - part[:, 0].mean())
    assert adaptive_ece(p, y, bins=bins) == pytest.approx(expected)
    dense = adaptive_ece(p.reshape(5, 10, 4), y.reshape(5, 10), bins=bins)
    assert dense == pytest.approx(expected)


def test_adaptive_ece_of_calibrated_predictions_falls_and_of_others_does_not():
    p = torch.randn(40_000, 3).softmax(-1)
    y = torch.distributions.Categorical(p).sample()
    assert adaptive_ece(p, y) < 0.02
    assert adaptive_ece((5 * p.log()).softmax(-1), y) > 0.1


def test_selective_risk_by_hand():
    uncertainty = torch.tensor([0.3, 0.1, 0.9, 0.4, 0.2])
    loss = torch.tensor([0.0, 1.0, 4.0, 2.0, 0.5])
    curve = selective_risk(uncertainty, loss)
    risk = [1.0, 1.5 / 2, 1.5 / 3, 3.5 / 4, 7.5 / 5]  # of the 1, 2, ... most certain
    assert curve.risk.tolist() == pytest.approx(risk[::-1])
    assert curve.rejected.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert curve.aurc == pytest.approx(sum(risk) / 5)
    best = [0, 0.5 / 2, 1.5 / 3, 3.5 / 4, 7.5 / 5]
    assert curve.best_aurc == pytest.approx(sum(best) / 5)
    assert curve.excess_aurc == pytest.approx((sum(risk) - sum(best)) / 5)


def test_selective_risk_of_ties_is_the_mean_over_their_orders():
    uncertainty = torch.tensor([0.5, 0.5, 0.1, 0.5, 0.9])
    loss = torch.tensor([1.0, 0.0, 0.2, 5.0, 2.0])
    areas = []
    for order in itertools.permutations([0, 1, 3]):
        ordered = loss[[2, *order, 4]].double()
        areas.append(float((ordered.cumsum(0) / torch.arange(1, 6)).mean()))
    curve = selective_risk(uncertainty, loss)
    assert curve.aurc == pytest.approx(sum(areas) / 6)


def test_selective_risk_takes_equal_uncertainty_for_no_information():
    loss = torch.rand(30)
    curve = selective_risk(torch.ones(30), loss)
    assert curve.risk.tolist() == pytest.approx([float(loss.double().mean())] * 30)


@pytest.mark.parametrize("scale", [1.0, 1e4])  # far above 1: an order that squashing would lose
@pytest.mark.parametrize("rounded", [False, True])
def test_out_of_distribution_is_scikit_learns(scale, rounded):
    inside, outside = scale * torch.randn(151), scale * (1 + torch.randn(90))
    if rounded:
        inside, outside = (2 * inside / scale).round(), (2 * outside / scale).round()
    found = out_of_distribution(inside, outside)
    scores = torch.cat([inside, outside])
    truth = torch.cat([torch.zeros(151), torch.ones(90)])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    # In their curve the examples are the positives.
    false, true, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(false[np.argmax(true >= 0.95)])


def test_out_of_distribution_by_hand():
    inside = torch.arange(20.0)  # 95 % are 19 of 20: the threshold is 18
    outside = torch.tensor([17.0, 18.0, 18.5, 30.0])
    found = out_of_distribution(inside, outside)
    assert found["fpr95"] == 0.5
    below = (17.5 + 18.5 + 19 + 20) / 80  # pairs in the right order, ties half
    assert found["auroc"] == pytest.approx(below)


def test_regression_metrics_agree_with_evaluate_and_with_loops():
    std = torch.tensor([0.5, 2.0])
    model = make_model(pn.likelihoods.Normal(std), 2)
    guide = GivenDraws(model, 6)
    x, y = torch.randn(30, 5), torch.randn(30, 2)
    samples = pn.predict(model, pn.PyroGuide(guide), x, 6).samples
    found = probabilistic_regression_metrics(samples, std, y, levels=(0.5, 0.8))
    assert list(found) == ["pll", "crps", "rmse", "coverage_50", "coverage_80"]
    known = pn.evaluate(model, pn.PyroGuide(guide), (x, y), 6)
    assert (-found["pll"], found["rmse"]) == pytest.approx((known["nll"], known["rmse"]), rel=1e-4)
    assert found["crps"] == pytest.approx(float(crps_normal_mixture(samples, std, y).mean()))
    inside = 0
    for i, k in itertools.product(range(30), range(2)):
        m = samples[:, i, k].numpy()
        cdf = stats.norm.cdf((float(y[i, k]) - m) / float(std[k])).mean()
        inside += 0.1 <= cdf <= 0.9
    assert found["coverage_80"] == pytest.approx(inside / 60)


def test_coverage_is_the_level_where_predictions_are_right_and_targets_may_be_single():
    """20,000 values: within 4.5 standard errors."""
    mean, std = torch.randn(20_000), 0.5 + torch.rand(20_000)
    y = mean + std * torch.randn(20_000)
    found = probabilistic_regression_metrics(mean[None], std, y, levels=(0.5, 0.95, 0.999))
    for level in (0.5, 0.95, 0.999):
        error = math.sqrt(level * (1 - level) / 20_000)
        assert abs(found[f"coverage_{100 * level:g}"] - level) < 4.5 * error
    expected = stats.norm.logpdf(y.numpy(), mean.numpy(), std.numpy()).mean()
    assert found["pll"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    p, y = torch.full((5, 2), 0.5), torch.zeros(5, dtype=torch.long)
    with pytest.raises(OptionError, match=r"bins must be from 1 to 5 \(examples\), got 6"):
        adaptive_ece(p, y, bins=6)
    with pytest.raises(DataError, match="adaptive_ece: rows of probabilities"):
        adaptive_ece(2 * p, y, bins=2)
    with pytest.raises(ShapeError, match=r"one shape .* got \(4,\) and \(5,\)"):
        selective_risk(torch.ones(4), torch.ones(5))
    for empty in (torch.ones(0), torch.tensor([1.0, math.nan])):
        with pytest.raises(DataError):
            selective_risk(empty, empty)
        with pytest.raises(DataError):
            out_of_distribution(empty, torch.ones(3))
        with pytest.raises(DataError):
            out_of_distribution(torch.ones(3), empty)
    mean, one = torch.zeros(3, 4), torch.ones(())
    for bad_mean, std, target in [
        (mean, one, torch.zeros(3)),
        (mean, torch.ones(3), torch.zeros(4)),
        (mean, torch.ones(2, 3, 4), torch.zeros(4)),
    ]:
        with pytest.raises(ShapeError):
            crps_normal_mixture(bad_mean, std, target)
        with pytest.raises(ShapeError):
            probabilistic_regression_metrics(bad_mean, std, target)
    with pytest.raises(DataError, match="std must be positive, got 0"):
        crps_normal_mixture(mean, 0 * one, torch.zeros(4))
    with pytest.raises(OptionError, match="levels must be between 0 and 1, got 90"):
        probabilistic_regression_metrics(mean, one, torch.zeros(4), levels=(90,))
    with pytest.raises(ShapeError):
        crps_samples(mean, torch.zeros(3))
