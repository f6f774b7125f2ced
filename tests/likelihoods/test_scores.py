"""Metrics of predictions against loops over draws, examples and values."""

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pyronorm.errors import DataError
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    MultivariateNormal,
    Normal,
    Ordinal,
    Poisson,
    Scores,
    StudentT,
)

DRAWS, BATCH = 4, 30


def test_segmentation_with_ignored_pixels_by_brute_force():
    output = 2 * torch.randn(DRAWS, 6, 3, 4, 5, dtype=torch.float64)
    y = torch.randint(3, (6, 4, 5))
    y[torch.rand(6, 4, 5) < 0.4] = 255
    y[2] = 255
    found = Categorical(ignore_index=255).scores(output, y).metrics()
    p = output.softmax(2)
    joint, single, right, brier = [], [], [], []
    for i in range(6):
        density = torch.zeros(DRAWS, dtype=torch.float64)
        for r in range(4):
            for c in range(5):
                k = int(y[i, r, c])
                if k == 255:
                    continue
                density += p[:, i, k, r, c].log()
                mean = p[:, i, :, r, c].mean(0)
                single.append(-math.log(mean[k]))
                right.append(int(mean.argmax()) == k)
                brier.append(float((mean - F.one_hot(torch.tensor(k), 3)).square().sum()))
        if bool((y[i] != 255).any()):
            joint.append(-math.log(float(density.exp().mean())))
    assert len(joint) == 5
    expected = {
        "accuracy": sum(right) / len(right),
        "nll": sum(joint) / 5,
        "nll_per_position": sum(single) / len(single),
        "brier": sum(brier) / len(brier),
    }
    assert list(found) == ["accuracy", "nll", "nll_per_position", "ece", "brier", "aurc"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_one_draw_has_one_nll():
    """For one draw the sum over positions is the sum of what they say alone."""
    output, y = torch.randn(1, BATCH, 3, 7), torch.randint(3, (BATCH, 7))
    found = Categorical().scores(output, y).metrics()
    assert found["nll"] == pytest.approx(7 * found["nll_per_position"], rel=1e-5)
    assert found["nll_per_position"] == pytest.approx(
        float(F.cross_entropy(output[0], y)), rel=1e-5
    )


def test_labels_are_two_classes_each():
    output, y = torch.randn(DRAWS, BATCH, 3), (torch.rand(BATCH, 3) < 0.4).float()
    found = Bernoulli().scores(output, y).metrics()
    p = output.sigmoid().mean(0)
    assert found["accuracy"] == pytest.approx(float(((p > 0.5) == y.bool()).float().mean()))
    assert found["brier"] == pytest.approx(float(2 * (p - y).square().mean()), rel=1e-5)
    assert found["nll_per_position"] == pytest.approx(float(F.binary_cross_entropy(p, y)), rel=1e-5)


def test_ranked_probability_score_by_hand():
    likelihood = Ordinal(torch.tensor([-1.0, 0.5, 1.0]))
    output, y = torch.randn(DRAWS, BATCH), torch.randint(4, (BATCH,))
    found = likelihood.scores(output, y).metrics()
    p = likelihood.expected(output, 1).mean(0).detach()
    total = 0.0
    for i in range(BATCH):
        for k in range(4):
            total += (float(p[i, : k + 1].sum()) - (int(y[i]) <= k)) ** 2
    assert found["rps"] == pytest.approx(total / BATCH, rel=1e-4)


def test_counts_by_hand():
    output = torch.randn(DRAWS, 200, dtype=torch.float64)
    y = torch.poisson(output[0].exp())
    found = Poisson().scores(output, y).metrics()
    rates = output.exp().numpy()
    density = scipy.stats.poisson.pmf(y.numpy(), rates).mean(0)
    assert found["nll"] == pytest.approx(-float(torch.tensor(density).log().mean()))
    assert found["rmse"] == pytest.approx(
        float((rates.mean(0) - y.numpy()).__pow__(2).mean() ** 0.5)
    )
    grid = torch.arange(60).double().numpy()[:, None, None]
    cdf = torch.tensor(scipy.stats.poisson.cdf(grid, rates).mean(1))  # (value, example)
    steps = (torch.arange(60)[:, None] >= y).double()
    crps = (cdf - steps).square().sum(0).mean()
    assert found["crps"] == pytest.approx(float(crps), rel=0.02)  # from samples
    for level in (0.5, 0.9, 0.95):
        prediction = Poisson().predict(output).interval(level)
        assert found[f"coverage_{100 * level:g}"] == pytest.approx(prediction.coverage(y))


@pytest.mark.parametrize("likelihood", [Normal(0.5), StudentT(4.0, 0.5)])
def test_coverage_is_that_of_the_interval_and_the_level(likelihood):
    output = torch.randn(DRAWS, 4000, dtype=torch.float64)
    prediction = likelihood.predict(output)
    y = torch.stack([likelihood.distribution(o).sample() for o in output])
    y = y[torch.randint(DRAWS, (4000,)), torch.arange(4000)]
    found = prediction.metrics(y)
    for level in (0.5, 0.9, 0.95):
        coverage = found[f"coverage_{100 * level:g}"]
        assert coverage == pytest.approx(prediction.interval(level).coverage(y), abs=1e-3)
        assert abs(coverage - level) < 4.5 * math.sqrt(level * (1 - level) / 4000)


def test_vectors_have_marginal_scores():
    likelihood = MultivariateNormal(torch.tensor([0.5, 1.0]), torch.tensor([[1.0], [0.3]]))
    output, y = torch.randn(DRAWS, BATCH, 2), torch.randn(BATCH, 2)
    found = likelihood.scores(output, y).metrics()
    assert "nll_per_position" not in found
    density = torch.stack([likelihood.distribution(o).log_prob(y) for o in output])
    assert found["nll"] == pytest.approx(
        float(math.log(DRAWS) - density.logsumexp(0).mean()), rel=1e-5
    )
    std = likelihood.covariance.diagonal().sqrt()
    alone = Normal(std).scores(output, y).metrics()
    for name in ("rmse", "crps", "coverage_50", "coverage_90", "coverage_95"):
        assert found[name] == pytest.approx(alone[name], rel=1e-5)


def test_batches_join_and_large_ones_are_cut(monkeypatch):
    output, y = torch.randn(DRAWS, BATCH, 3), torch.randn(BATCH, 3)
    y[0, 1] = y[5] = math.nan
    whole = Normal().scores(output, y)
    parts = [Normal().scores(output[:, a:b], y[a:b]) for a, b in ((0, 7), (7, BATCH))]
    assert Scores.join(parts).metrics() == pytest.approx(whole.metrics())
    monkeypatch.setattr("pyronorm.likelihoods.base._ELEMENTS", 10_000)
    assert len(Normal().parts(output)) == 10
    assert Normal().scores(output, y).metrics() == pytest.approx(whole.metrics())
    with pytest.raises(DataError, match="no batch"):
        Scores.join([])


def test_nothing_observed_is_refused():
    y = torch.full((BATCH,), math.nan)
    with pytest.raises(DataError, match="all values are missing"):
        Normal().scores(torch.randn(DRAWS, BATCH), y).metrics()
