"""Deep ensemble equivalents: curves by brute force, and curves whose inverse is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyronorm.diagnostics import ensemble_curve, ensemble_equivalent, fit_temperature
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import Categorical, Prediction

NETWORKS, EXAMPLES, FOLDS = 4, 90, 3


@pytest.fixture(scope="module")
def predictions() -> tuple[list[Prediction], torch.Tensor]:
    """Networks that know the classes, each with noise of its own, and are too sure."""
    torch.manual_seed(0)
    y = torch.randint(3, (EXAMPLES,))
    known = torch.nn.functional.one_hot(y, 3).float()
    outputs = 3 * (known + torch.randn(NETWORKS, 1, EXAMPLES, 3))
    return [Categorical().predict(output) for output in outputs], y


def test_a_curve_is_the_mean_over_all_ensembles(predictions) -> None:
    members, y = predictions
    curve = ensemble_curve(members, y, subsets=6, folds=FOLDS, seed=5)
    assert curve.number == (4, 6, 4, 1)
    fold = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(5)) % FOLDS
    for size in range(1, NETWORKS + 1):
        by_hand = []
        for chosen in itertools.combinations(members, size):
            outputs = torch.cat([member.outputs for member in chosen])
            total = 0.0
            for k in range(FOLDS):
                rest = Categorical().predict(outputs[:, fold != k])
                temperature = fit_temperature(rest, y[fold != k])
                own = Categorical().predict(outputs[:, fold == k]).tempered(temperature)
                total -= float(own.log_prob(y[fold == k]).sum())
            by_hand.append(total / EXAMPLES)
        # Temperatures are sought in steps of 3.5 %.
        assert float(curve.nll[size - 1]) == pytest.approx(np.mean(by_hand), abs=5e-4)
        if len(by_hand) > 1:
            assert float(curve.std[size - 1]) == pytest.approx(np.std(by_hand, ddof=1), abs=5e-4)
    assert math.isnan(float(curve.std[-1]))
    assert bool((curve.nll.diff() < 0).all())


def test_ensembles_are_drawn_without_repetition(predictions) -> None:
    members, y = predictions
    few = ensemble_curve(members, y, subsets=3, folds=FOLDS)
    assert few.number == (3, 3, 3, 1)
    again = ensemble_curve(members, y, subsets=3, folds=FOLDS)
    assert torch.equal(few.nll, again.nll)
    # Two of six pairs, each twice, would have no spread.
    assert float(few.std[1]) > 0


@pytest.mark.parametrize("members", [1.0, 1.3, 2.0, 3.7, 5.0])
def test_the_inverse_of_a_known_curve(members: float) -> None:
    sizes = torch.arange(1, 6, dtype=torch.double)
    level = torch.tensor([0.3, 0.4, 0.2], dtype=torch.double)
    curves = level[:, None] + 0.1 / sizes
    found = ensemble_equivalent(curves, level + 0.1 / members)
    assert found.members == pytest.approx(members)
    # The runs differ by a constant alone: nothing is uncertain.
    assert (found.low, found.high) == pytest.approx((members, members))


def test_the_ends_of_a_curve() -> None:
    curve = torch.tensor([[0.5, 0.4, 0.36]])
    worse = ensemble_equivalent(curve, torch.tensor([0.51]))
    assert (worse.members, str(worse)) == (0.0, "< 1")
    better = ensemble_equivalent(curve, torch.tensor([0.35]))
    assert (better.members, str(better)) == (math.inf, "> 3")
    assert math.isnan(better.low)


def test_a_curve_that_rises_is_taken_at_its_least_so_far() -> None:
    curve = torch.tensor([[0.5, 0.4, 0.45, 0.3]], dtype=torch.double)
    assert ensemble_equivalent(curve, torch.tensor([0.4], dtype=torch.double)).members == 2.0
    between = ensemble_equivalent(curve, torch.tensor([0.35], dtype=torch.double)).members
    assert between == pytest.approx(1 / (0.5 / 3 + 0.5 / 4))


def test_the_interval_is_that_of_paired_tests() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.arange(1, 9, dtype=torch.double)
    noise = 0.01 * torch.randn(6, 1, generator=generator, dtype=torch.double)
    curves = 0.3 + 0.2 / sizes + noise
    nll = 0.3 + 0.2 / 3 + 0.01 * torch.randn(6, generator=generator, dtype=torch.double)
    found = ensemble_equivalent(curves, nll, level=0.9)
    assert 1 < found.low < found.members < found.high < 8
    for end in (found.low, found.high):
        at_end = 0.3 + 0.2 / end + noise[:, 0]
        assert stats.ttest_rel(at_end, nll).pvalue == pytest.approx(0.1)


def test_an_interval_beyond_both_ends() -> None:
    curves = torch.tensor([[0.5, 0.4], [0.5, 0.4], [0.5, 0.4]])
    found = ensemble_equivalent(curves, torch.tensor([0.2, 0.7, 0.45]))
    assert (found.low, found.high) == (0.0, math.inf)
    assert str(found).endswith("(< 1 to > 2)")


def test_what_is_refused(predictions) -> None:
    members, y = predictions
    with pytest.raises(OptionError, match="no prediction"):
        ensemble_curve([], y)
    with pytest.raises(OptionError, match="keep_samples=True"):
        ensemble_curve([Categorical().predict(members[0].outputs, keep_samples=False)], y)
    with pytest.raises(OptionError, match="folds must be"):
        ensemble_curve(members, y, folds=EXAMPLES + 1)
    other = Categorical().predict(members[0].outputs[:, 1:])
    with pytest.raises(ShapeError, match="one shape"):
        ensemble_curve([members[0], other], y)
    with pytest.raises(ShapeError, match="one nll per run"):
        ensemble_equivalent(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(DataError, match="not finite"):
        ensemble_equivalent(torch.ones(2, 3), torch.tensor([0.1, math.nan]))
