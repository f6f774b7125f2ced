"""What a prediction answers, against the distribution it is made of."""

import dataclasses
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    Likelihood,
    Normal,
    Ordinal,
    Poisson,
    Prediction,
)

DRAWS, BATCH = 5, 6


def test_samples_are_the_means_of_the_draws():
    output = torch.randn(DRAWS, BATCH, 3)
    torch.testing.assert_close(Categorical().predict(output).samples, output.softmax(-1))
    assert Categorical().predict(output, keep_samples=False).samples is None


def test_sample_takes_one_draw_for_all_examples():
    output = torch.tensor([0.0, 1e3, 2e3])[:, None].expand(3, BATCH)
    found = Normal(1.0).predict(output).sample(600, seed=4)
    assert found.shape == (600, BATCH)
    draw = (found / 1e3).round()
    assert bool((draw == draw[:, :1]).all())
    counts = torch.bincount(draw[:, 0].long())
    assert counts.min() > 140  # 200 each, with a standard deviation of 12
    assert float((found - 1e3 * draw).std()) == pytest.approx(1, abs=0.1)


def test_sample_seeds():
    prediction = Bernoulli().predict(torch.randn(DRAWS, BATCH))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b = prediction.sample(50, seed=1), prediction.sample(50, seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(a, b)
    assert not torch.equal(a, prediction.sample(50))
    with pytest.raises(OptionError, match="num_samples must be at least 1, .* got 0"):
        prediction.sample(0)


def test_log_prob_is_the_mixture_and_nan_without_data():
    output, y = torch.randn(DRAWS, BATCH, 2), torch.randn(BATCH, 2)
    y[1, 0] = y[4] = math.nan
    prediction = Normal(0.7).predict(output)
    found = prediction.log_prob(y)
    density = torch.distributions.Normal(output, 0.7).log_prob(y.nan_to_num()).exp()
    density = torch.where(y.isnan(), 1.0, density)
    expected = density.prod(-1).mean(0).log()
    expected[4] = math.nan
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert prediction.nll(y) == pytest.approx(-float(expected[[0, 1, 2, 3, 5]].mean()))
    assert prediction.metrics(y)["nll"] == pytest.approx(prediction.nll(y))
    with pytest.raises(DataError, match="all values are missing"):
        prediction.nll(torch.full_like(y, math.nan))


def test_quantiles_and_intervals_have_the_shape_of_the_data():
    prediction = Normal(1.0).predict(torch.randn(DRAWS, BATCH, 3))
    assert prediction.quantiles(0.5).shape == (BATCH, 3)
    assert prediction.quantiles([0.1, 0.9]).shape == (2, BATCH, 3)
    assert prediction.quantiles(torch.tensor([0.1])).shape == (1, BATCH, 3)
    found = prediction.interval(0.8)
    torch.testing.assert_close(found.lower, prediction.quantiles(0.1))
    torch.testing.assert_close(found.upper, prediction.quantiles(0.9))
    assert found.mean is prediction.mean
    assert bool((found.width > 0).all())


def test_quantiles_of_ordered_classes():
    likelihood = Ordinal(torch.tensor([-1.0, 0.0, 2.0]))
    output = torch.randn(DRAWS, BATCH)
    prediction = likelihood.predict(output)
    cdf = prediction.mean.cumsum(-1)
    for q in (0.05, 0.5, 0.9):
        found = prediction.quantiles(q)
        assert not found.is_floating_point()
        for i in range(BATCH):
            assert found[i] == next(k for k in range(4) if float(cdf[i, k]) >= q)
    interval = prediction.interval(0.9)
    torch.testing.assert_close(interval.mean, prediction.mean @ torch.arange(4.0))
    assert interval.coverage(torch.full((BATCH,), 1)) <= 1


def test_large_predictions_are_made_in_parts(monkeypatch):
    output = torch.randn(DRAWS, BATCH, 2)
    likelihood = Likelihood.of(lambda o: dist.Beta(2.0, o.exp()))
    whole = likelihood.predict(output)
    monkeypatch.setattr("pyronorm.likelihoods.base._ELEMENTS", 5000)
    parts = likelihood.predict(output)
    assert len(likelihood.parts(output)) == 3
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.entropy, whole.entropy, rtol=0, atol=0.1)
    torch.testing.assert_close(parts.quantiles(0.3), whole.quantiles(0.3), rtol=0, atol=0.05)


def test_join():
    output = torch.randn(DRAWS, BATCH, 3)
    whole = Categorical().predict(output)
    parts = [Categorical().predict(output[:, :2]), Categorical().predict(output[:, 2:])]
    joined = Prediction.join(parts)
    assert len(joined) == BATCH
    for field in dataclasses.fields(Prediction)[1:]:
        torch.testing.assert_close(getattr(joined, field.name), getattr(whole, field.name))
    parts[1] = Categorical().predict(output[:, 2:], keep_samples=False)
    assert Prediction.join(parts).outputs is None
    with pytest.raises(DataError, match="no batch"):
        Prediction.join([])


def test_it_keeps_the_likelihood_as_it_was():
    likelihood = Normal(1.0, learned=True)
    prediction = likelihood.predict(torch.zeros(1, BATCH))
    with torch.no_grad():
        likelihood.log_std += 2
    torch.testing.assert_close(
        prediction.interval(0.95).upper, torch.full((BATCH,), 1.959964), rtol=1e-4, atol=0
    )
    assert isinstance(likelihood.log_std, nn.Parameter)
    assert likelihood.log_std.requires_grad


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.quantiles(0.5),
        lambda p: p.interval(),
        lambda p: p.sample(),
        lambda p: p.log_prob(torch.zeros(BATCH)),
        lambda p: p.nll(torch.zeros(BATCH)),
        lambda p: p.metrics(torch.zeros(BATCH)),
    ],
)
def test_what_needs_the_outputs_says_so(use):
    prediction = Normal().predict(torch.randn(DRAWS, BATCH), keep_samples=False)
    with pytest.raises(OptionError, match="keep_samples=True"):
        use(prediction)


def test_refusals():
    prediction = Normal().predict(torch.randn(DRAWS, BATCH))
    for q in (0.0, 1.0, -0.1, [0.5, 2.0], torch.zeros(2, 2) + 0.5, math.nan):
        with pytest.raises(OptionError, match="levels must be between 0 and 1"):
            prediction.quantiles(q)
    with pytest.raises(OptionError, match="level must be between 0 and 1, got 90"):
        prediction.interval(90)
    with pytest.raises(ShapeError, match="describes y of shape"):
        prediction.nll(torch.zeros(BATCH, 1))
    with pytest.raises(OptionError, match="classes of Categorical have no order"):
        Categorical().predict(torch.randn(DRAWS, BATCH, 3)).quantiles(0.5)
    with pytest.raises(ShapeError, match="coverage: y must have the shape"):
        prediction.interval().coverage(torch.zeros(BATCH + 1))
    with pytest.raises(ShapeError, match="1 sample axes in front"):
        Poisson().predict(torch.zeros(BATCH))


def test_words_and_html():
    prediction = Categorical().predict(torch.randn(DRAWS, BATCH, 7))
    assert repr(prediction) == "Prediction(Categorical, 6 examples, mean (6, 7), samples 5)"
    page = prediction._repr_html_()
    assert page.count("<tr>") == 6  # the head and five examples
    assert "mutual information" in page
    assert "…" in page
    kept = Categorical().predict(torch.randn(DRAWS, BATCH, 7), keep_samples=False)
    assert "samples not kept" in repr(kept)
