"""Missing data, from the model to ArviZ: as if they were not there."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, ShapeError

N, MISSING = 24, 7
pytestmark = [
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def pointwise_sum(idata) -> float:
    """What ``az.loo`` estimates."""
    found = az.loo(idata)
    return float(found.elpd_loo if az.__version__.startswith("0.") else found.elpd)


def network() -> pn.LatentNetwork:
    """A network without batch statistics: there the inputs alone of an example count."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    return pn.LatentNetwork(pn.convert(plain))


def regression() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets of which the first are missing, and which are observed."""
    x, y = torch.randn(N, 3), torch.randn(N, 2)
    y[:MISSING] = math.nan
    return x, y, torch.arange(N) >= MISSING


def model_of(size: int, likelihood: pn.likelihoods.Likelihood | None = None):
    likelihood = pn.likelihoods.Normal(0.5, learned=True) if likelihood is None else likelihood
    return pn.NormalizationModel(
        network(), likelihood, num_data=size, prior=pn.priors.BatchNoise(16)
    )


def loss_and_gradients(model: pn.NormalizationModel, *data: torch.Tensor):
    torch.manual_seed(0)
    guide = pn.guides.MeanField(model)
    torch.manual_seed(3)
    loss = Trace_ELBO().differentiable_loss(model, guide, *data)
    parameters = [p for module in (model, guide) for p in module.parameters()]
    return loss, torch.autograd.grad(loss, parameters, allow_unused=True)


def assert_same(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        if b is None:
            assert a is None
        else:
            assert bool(a.isfinite().all())
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_regression_with_missing_targets_is_that_without_them() -> None:
    x, y, kept = regression()
    whole = loss_and_gradients(model_of(N), x, y)
    alone = loss_and_gradients(model_of(N - MISSING), x[kept], y[kept])
    assert_same(whole, alone)


def test_mini_batches_with_missing_targets_are_unbiased() -> None:
    """The mean over the batches of an epoch is the loss of all data, batches without any included."""
    x, y, _ = regression()
    whole, _ = loss_and_gradients(model_of(N), x, y)
    parts = [loss_and_gradients(model_of(N), x[i : i + 6], y[i : i + 6])[0] for i in range(0, N, 6)]
    assert bool(y[:6].isnan().all())
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_fit_predicts_what_is_missing_and_equals_the_fit_without() -> None:
    x, y, kept = regression()
    results = []
    for size, data in ((N, (x, y)), (N - MISSING, (x[kept], y[kept]))):
        model = model_of(size)
        guide = pn.guides.MeanField(model)
        pn.fit(
            model,
            guide,
            data,
            epochs=15,
            batch_size=size,
            lr=0.02,
            seed=4,
            progress=False,
            validation=pn.Validation(data),
        )
        results.append(pn.predict(model, guide, x, 16, seed=2).mean)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_metrics_and_export_are_those_without() -> None:
    x, y, kept = regression()
    model = model_of(N, pn.likelihoods.StudentT(4.0))
    guide = pn.guides.MeanField(model)
    found = pn.evaluate(model, guide, (x, y), 40, seed=1)
    expected = pn.evaluate(model, guide, (x[kept], y[kept]), 40, seed=1)
    # The CRPS is of samples, which depend on how many values there are.
    assert found.pop("crps") == pytest.approx(expected.pop("crps"), rel=0.1)
    assert found == pytest.approx(expected, rel=1e-5)
    assert pn.predict(model, guide, x, 40, seed=1).metrics(y)["nll"] == pytest.approx(found["nll"])
    idata = pn.to_arviz(model, guide, (x, y), 60, seed=1)
    assert idata["log_likelihood"]["example"].values.tolist() == list(range(MISSING, N))
    assert idata["posterior_predictive"]["y"].shape == (1, 60, N, 2)
    assert idata["observed_data"]["y"].shape == (N, 2)
    smaller = model_of(N - MISSING, model.likelihood)
    other = pn.to_arviz(smaller, guide, (x[kept], y[kept]), 60, seed=1)
    for name in ("log_likelihood", "sample_stats"):
        variable = "y" if name == "log_likelihood" else "lp"
        torch.testing.assert_close(
            torch.tensor(idata[name][variable].values), torch.tensor(other[name][variable].values)
        )
    found = [pn.diagnostics.loo(data) for data in (idata, other)]
    assert found[0].elpd == pytest.approx(found[1].elpd, rel=1e-5, nan_ok=True)
    np.testing.assert_allclose(found[0].pareto_k, found[1].pareto_k, rtol=1e-4)
    pn.diagnostics.compare({"a": idata, "b": idata})


def test_ignored_pixels_from_training_to_arviz() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    )
    likelihood = pn.likelihoods.Categorical(ignore_index=255)
    model = pn.NormalizationModel(pn.convert(plain), likelihood, 12, pn.priors.BatchNoise(16))
    guide = pn.guides.MeanField(model)
    x, y = torch.randn(12, 2, 5, 4), torch.randint(3, (12, 5, 4))
    y[torch.rand(y.shape) < 0.3] = 255
    y[3] = 255
    pn.fit(
        model,
        guide,
        (x, y),
        epochs=3,
        batch_size=4,
        validation=pn.Validation((x, y)),
        progress=False,
    )
    metrics = pn.evaluate(model, guide, (x, y), 8, seed=1)
    output = pn.predict(model, guide, x, 8, seed=1).outputs
    total = 0.0
    for i in range(12):
        if i != 3:
            log_p = -nn.functional.cross_entropy(
                output[:, i], y[i].expand(8, 5, 4), ignore_index=255, reduction="none"
            ).sum((1, 2))
            total -= float(log_p.logsumexp(0)) - math.log(8)
    assert metrics["nll"] == pytest.approx(total / 11, rel=1e-5)
    idata = pn.to_arviz(model, guide, (x, y), 30, seed=1)
    assert math.isfinite(pointwise_sum(idata))


def test_nothing_observed() -> None:
    x, y, _ = regression()
    model = model_of(N)
    guide = pn.guides.MeanField(model)
    nothing = torch.full_like(y, math.nan)
    with pytest.raises(DataError, match="all values are missing"):
        pn.evaluate(model, guide, (x, nothing), 3)
    loss, gradients = loss_and_gradients(model, x, nothing)  # the KL divergence alone
    assert bool(loss.isfinite())
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


def test_weights_of_examples_repeat_them() -> None:
    x, y, kept = regression()
    x, y = x[kept][:6], y[kept][:6]
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 1.0])
    index = torch.tensor([0, 2, 2, 3, 4, 5])
    assert_same(
        loss_and_gradients(model_of(6), x, y, weight),
        loss_and_gradients(model_of(6), x[index], y[index]),
    )


@pytest.mark.usefixtures("unchecked")
def test_weights_that_do_not_fit() -> None:
    x, y, _ = regression()
    model = model_of(N)
    with pytest.raises(ShapeError, match=r"weight must have the shape \(24,\).* got \(24, 2\)"):
        model(x, y, torch.ones(N, 2))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="weights must be finite and not negative"):
            model(x, y, torch.full((N,), bad))


def test_sampled_data_have_no_missing_values() -> None:
    model = model_of(N)
    with pyro.poutine.seed(rng_seed=0):
        assert bool(model(torch.randn(N, 3)).isfinite().all())
