"""Oracle: the exact posterior of a model with one channel, by integration over a grid."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, StatisticsError
from pyronorm.infer import as_posterior, run_nuts
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.priors import ScaleInvariant, Standard
from tests.guides.cases import make_model
from tests.guides.conjugate import Conjugate

N = 30


def model_and_data(num_data: int = N):
    model = make_model()
    model.num_data = num_data
    return model, (torch.randn(N, 5), torch.randint(3, (N,)))


def test_the_exact_posterior_of_a_linear_gaussian_model():
    """Means, deviations and correlation within 5 Monte-Carlo errors (false alarm 3e-6 in all)."""
    problem = Conjugate(Standard(0.7, 0.6), num_data=12, std=2.0, offset=0.8)
    chains = run_nuts(problem.model, (problem.x, problem.y), 300, 150, 2, seed=4, progress=False)
    weight = problem.posterior()
    shift, scale = (x.unflatten(0, (2, -1))[..., 0] for x in (chains.shift, chains.scale))
    drawn = {"shift": shift, "log_scale": scale.log()}
    centred = {}
    for name, draws in drawn.items():
        grid = getattr(problem, name)
        mean = (weight * grid).sum()
        std = (weight * (grid - mean).square()).sum().sqrt()
        centred[name] = (grid - mean) / std, (draws.flatten() - mean) / std
        ess = float(az.ess(draws.numpy()))
        assert ess > 100
        assert abs(draws.mean() - mean) < 5 * std / ess**0.5
        assert abs(draws.std() / std - 1) < 5 / (2 * ess / 3) ** 0.5
        assert float(az.rhat(draws.numpy())) < 1.05
    exact = (weight * centred["shift"][0] * centred["log_scale"][0]).sum()
    assert exact < -0.3  # the case has something to show
    found = (centred["shift"][1] * centred["log_scale"][1]).mean()
    assert abs(found - exact) < 5 / 100**0.5
    assert not chains.stats["diverging"].any()


def test_shapes_and_seeds():
    model, data = model_and_data()
    options = {"num_samples": 4, "warmup": 3, "max_tree_depth": 2, "progress": False}
    state = torch.get_rng_state()
    a = run_nuts(model, data, num_chains=2, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.shift.shape == a.scale.shape == (8, 10)
    assert a.num_chains == 2
    assert a.stats["diverging"].shape == (8,)
    assert (a.scale > 0).all()
    assert not torch.equal(a.shift[:4], a.shift[4:])
    b = run_nuts(model, data, num_chains=1, seed=2, **options)
    assert torch.equal(b.shift, a.shift[4:])  # chain k has seed + k


def test_an_improper_prior():
    """The start is neutral, so nothing has to be drawn from the prior."""
    model, data = model_and_data()
    model = NormalizationModel(model.network, model.likelihood, model.num_data, ScaleInvariant())
    chains = run_nuts(model, data, 6, 4, 1, max_tree_depth=2, seed=1, progress=False)
    assert chains.shift.isfinite().all()
    assert (chains.scale > 0).all()
    assert len(torch.unique(chains.shift, dim=0)) > 1  # it moves


def test_the_network_is_frozen_meanwhile_and_as_before_afterwards():
    model, data = model_and_data()
    model.train()
    model.network.network[0].bias.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run_nuts(model, data, 4, 2, 1, max_tree_depth=2, progress=False)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_compiled_steps_give_the_same_chain():
    model, data = model_and_data()
    options = {"num_samples": 5, "warmup": 5, "num_chains": 2, "seed": 3, "progress": False}
    plain, fast = (
        run_nuts(model, data, compile=compiled, dtype=torch.float64, **options)
        for compiled in (False, True)
    )
    torch.testing.assert_close(plain.shift, fast.shift, rtol=1e-6, atol=1e-6)


def test_the_precision_is_that_of_the_copy_alone():
    model, data = model_and_data()
    options = {"num_samples": 6, "warmup": 4, "num_chains": 1, "max_tree_depth": 3, "seed": 1}
    chains = run_nuts(model, data, dtype=torch.float64, progress=False, **options)
    assert chains.shift.dtype == torch.float64
    assert model.network.like.dtype == torch.float32
    assert pn.predict(model, chains, data[0]).mean.dtype == torch.float32
    with pytest.raises(OptionError, match=r"one of real numbers, .* got torch.int64"):
        run_nuts(model, data, dtype=torch.int64)


def test_chains_predict_and_export_like_a_guide():
    model, data = model_and_data()
    shift, scale = torch.randn(2, 6, 10), torch.rand(2, 6, 10) + 0.5
    diverging = torch.zeros(2, 6, dtype=torch.bool)
    diverging[1, 4] = True
    stats = {"diverging": diverging.flatten()}
    chains = draws = Draws(shift.flatten(0, 1), scale.flatten(0, 1), num_chains=2, stats=stats)
    prediction = pn.predict(model, chains, data[0], num_samples=12)
    with torch.no_grad():
        logits = model.network.eval()(data[0], draws.shift[:, None], draws.scale[:, None])
    torch.testing.assert_close(prediction.mean, logits.softmax(-1).mean(0))
    assert set(pn.evaluate(model, chains, data, 12)) >= {"nll", "accuracy"}
    idata = pn.to_arviz(model, chains, data)
    np.testing.assert_array_equal(idata["posterior"]["shift"].values, shift.numpy())
    np.testing.assert_array_equal(idata["sample_stats"]["diverging"].values, diverging.numpy())
    assert idata["posterior"].attrs["method"] == "Draws"
    for number in (0, 13):
        with pytest.raises(OptionError, match=r"num_samples must be (between 1 and 12|at least 1)"):
            pn.predict(model, chains, data[0], num_samples=number)


def test_chains_of_a_run_of_pyro():
    model, data = model_and_data()
    model.requires_grad_(False).eval()
    mcmc = MCMC(NUTS(model, max_tree_depth=2), 3, 2, disable_progbar=True)
    mcmc.run(*data)
    draws = as_posterior(mcmc, "test", model)
    assert isinstance(draws, Draws)
    assert torch.equal(draws.shift, mcmc.get_samples()["shift"])
    fresh = MCMC(NUTS(model), 3, 2, disable_progbar=True)
    with pytest.raises(OptionError, match="has no samples"):
        pn.predict(model, fresh, data[0])


def test_refusals():
    model, (x, y) = model_and_data()
    with pytest.raises(OptionError, match=f"num_data={N} examples, got 7"):
        run_nuts(model, (x[:7], y[:7]))
    with pytest.raises(DataError, match="got x alone"):
        run_nuts(model, x)
    with pytest.raises(DataError, match="no batch"):
        run_nuts(model, [])
    for name, least in (("num_samples", 4), ("warmup", 1), ("num_chains", 1)):
        with pytest.raises(
            OptionError, match=f"{name} must be at least {least}, an integer, got {least - 1}"
        ):
            run_nuts(model, (x, y), **{name: least - 1})
    stale = pn.NormalizationModel(
        pn.convert(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))),
        pn.likelihoods.Categorical(),
        N,
    )
    with pytest.raises(StatisticsError, match="no population statistics"):
        run_nuts(stale, (x, y))
