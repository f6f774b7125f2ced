"""Two likelihoods of a user, in five lines each: trained, predicted, evaluated, exported."""

from __future__ import annotations

import math

import arviz as az
import pyro.distributions as dist
import pytest
import torch

import pyronorm as pn
from tests.nets import mlp

pytestmark = [
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


class Poisson(pn.likelihoods.Likelihood):
    def distribution(self, output, num_sample_dims=0):
        counts = dist.Poisson(output.squeeze(-1).exp())
        return pn.likelihoods.per_example(counts, num_sample_dims)


class StudentT(pn.likelihoods.Likelihood):
    def distribution(self, output, num_sample_dims=0):
        heavy = dist.StudentT(4.0, output, 0.5)
        return pn.likelihoods.per_example(heavy, num_sample_dims)


CASES = {
    "poisson": (Poisson(), lambda f: torch.poisson(f[:, 0].exp())),
    "student": (StudentT(), lambda f: f + 0.5 * torch.randn_like(f)),
    "function": (
        pn.likelihoods.Likelihood.of(lambda output: dist.Poisson(output.exp())),
        lambda f: torch.poisson(f.exp()).long(),
    ),
}


@pytest.mark.parametrize(("likelihood", "draw"), CASES.values(), ids=CASES)
def test_from_training_to_leave_one_out(likelihood, draw) -> None:
    x = torch.randn(80, 5)
    y = draw(x[:, :1])
    prior = pn.priors.BatchNoise(32)
    model = pn.NormalizationModel(pn.convert(mlp(5, 6, 1)), likelihood, num_data=80, prior=prior)
    guide = pn.guides.MeanField(model)
    history = pn.fit(
        model,
        guide,
        (x, y),
        epochs=20,
        batch_size=20,
        lr=0.01,
        seed=0,
        progress=False,
        validation=pn.Validation((x, y)),
    )
    nll = [epoch.validation_nll for epoch in history.epochs]
    assert nll[-1] < nll[0]

    prediction = pn.predict(model, guide, x, 20, seed=1)
    assert prediction.mean.shape == prediction.entropy.shape == y.shape
    assert bool((prediction.variance > 0).all())
    interval = prediction.interval(0.9)
    assert interval.coverage(y) > 0.75
    assert prediction.sample(7, seed=1).shape == (7, *y.shape)
    assert "20" in repr(prediction)

    metrics = pn.evaluate(model, guide, (x, y), 20, seed=1)
    assert metrics == pytest.approx(prediction.metrics(y), rel=1e-4)
    assert metrics["nll"] == pytest.approx(prediction.nll(y), rel=1e-4)
    assert list(metrics) == ["nll", "rmse", "crps", "coverage_50", "coverage_90", "coverage_95"]

    idata = pn.to_arviz(model, guide, (x, y), 60, seed=2)
    assert idata["log_likelihood"]["y"].shape == (1, 60, *y.shape)
    found = az.loo(idata)
    elpd = float(found.elpd_loo if az.__version__.startswith("0.") else found.elpd)
    assert math.isfinite(elpd)
    assert -elpd / 80 == pytest.approx(metrics["nll"], abs=0.5)
