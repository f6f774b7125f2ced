"""Oracles: scipy's densities, adaptive quadrature, latents drawn with known batch sizes."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyronorm as pn
from pyronorm import LatentSpace, to_arviz
from pyronorm.errors import OptionError
from pyronorm.guides import HyperGuide
from pyronorm.infer import as_posterior
from pyronorm.latents import LatentLayer, Per
from pyronorm.laws import Hierarchical
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, Prior, Standard
from tests.guides.cases import make_bank, make_guide, make_model
from tests.priors.laws import pair

SPACE = LatentSpace((LatentLayer("a", 2, "Batch"), LatentLayer("b", 3, "Batch")))
GROUPS = {Per.NETWORK: [0] * 5, Per.LAYER: [0, 0, 1, 1, 1], Per.CHANNEL: [0, 1, 2, 3, 4]}


def by_hand(shift, scale, df, groups, size=20.0, a=1.7):
    """The log density of one draw, by scipy; df of shape (group,) or (group, point)."""
    total = scipy.stats.gamma(a, scale=(size - 1) / a).logpdf(df).sum(0)
    for x, s, g in zip(shift, scale, groups, strict=True):
        n = df[g] + 1
        total += scipy.stats.norm(0, n**-0.5).logpdf(x)
        # 1/scale^2 = chi2 / n, and the Jacobian of s -> n / s^2
        total += scipy.stats.chi2(n - 1).logpdf(n / s**2) + np.log(2 * n / s**3)
    return total


@pytest.mark.parametrize("per", Per)
def test_log_density_by_hand(per):
    prior = HierarchicalBatchNoise(20.0, 1.7, per)
    shift = 0.3 * torch.randn(4, 5, dtype=torch.float64)
    scale = torch.rand(4, 5, dtype=torch.float64) + 0.6
    df = 1 + 10 * torch.rand(4, max(GROUPS[per]) + 1, dtype=torch.float64)
    found = prior.log_prob(SPACE, shift, scale, {"df": df})
    rows = zip(shift.numpy(), scale.numpy(), df.numpy(), strict=True)
    expected = [by_hand(*row, GROUPS[per]) for row in rows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    # and as Pyro sums it up
    values = {"shift": shift[0], "scale": scale[0], "df": df[0]}
    trace = poutine.trace(poutine.condition(prior.sample, values)).get_trace(SPACE, shift[0])
    assert trace.log_prob_sum().item() == pytest.approx(expected[0], rel=1e-10)
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample"] == ["df", "shift", "scale"]


@pytest.mark.parametrize("per", Per)
def test_marginal_density_is_the_integral_over_batch_sizes(per):
    prior = HierarchicalBatchNoise(20.0, 1.7, per)
    shift = 0.3 * torch.randn(5, dtype=torch.float64)
    scale = torch.rand(5, dtype=torch.float64) + 0.6
    groups = np.array(GROUPS[per])
    t = np.linspace(-9, 9, 301)  # log(n - 1)
    expected = 0.0
    for g in range(groups.max() + 1):
        own = groups == g
        latents = (shift.numpy()[own], scale.numpy()[own])
        log_p = by_hand(*latents, np.exp(t)[None], [0] * own.sum()) + t
        expected += math.log(scipy.integrate.simpson(np.exp(log_p), x=t))
    found = prior.log_prob(SPACE, shift, scale, {})
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_marginal_density_of_a_wide_layer_and_at_the_neutral_latents():
    """Gaussian integrals about the mode (Laplace) are right to a part in the number of channels."""
    prior = HierarchicalBatchNoise(64.0, 2.0)
    space = LatentSpace((LatentLayer("a", 5000, "Batch"),))
    for shift, scale in (
        (torch.zeros(5000).double(), torch.ones(5000).double()),
        [d.sample() for d in pair(BatchNoise(9.0), 5000, torch.zeros(1).double())],
    ):

        def log_density(t, shift=shift, scale=scale):
            return prior.log_prob(space, shift, scale, {"df": t.exp()[None]}) + t

        t = torch.tensor(math.log(8.0), dtype=torch.float64)
        for _ in range(60):
            leaf = t.clone().requires_grad_()
            (slope,) = torch.autograd.grad(log_density(leaf), leaf, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, leaf)
            t = t + (slope / curvature.abs()).clamp(-1, 1).detach()
        expected = log_density(t) + 0.5 * math.log(2 * math.pi / -curvature.item())
        assert prior.marginal_log_prob(space, shift, scale).item() == pytest.approx(
            expected.item(), abs=1e-2
        )


def test_a_certain_batch_size_is_batch_noise():
    prior = HierarchicalBatchNoise(20.0, 1e8)
    shift, scale = 0.2 * torch.randn(3, 5).double(), torch.rand(3, 5).double() + 0.6
    given = BatchNoise(20.0).log_prob(SPACE, shift, scale, {})
    conditional = prior.law(SPACE, shift).given({"df": torch.full((2,), 19.0).double()})
    torch.testing.assert_close(conditional.log_prob(shift, scale), given)
    model = make_model(prior=prior)
    draws = model.prior.draws(model, 50)
    torch.testing.assert_close(draws.hyper["df"], torch.full((50, 2), 19.0), rtol=1e-3, atol=0)


def test_draws_of_the_prior_have_its_moments():
    """Mean and deviation of n - 1, within 5 standard errors; latents scatter as their n says."""
    prior = HierarchicalBatchNoise(20.0, 4.0, Per.CHANNEL)
    draws = prior.draws(make_model(prior=prior), 4000)
    df = draws.hyper["df"].double()
    assert df.shape == (4000, 10)
    assert abs(df.mean() - 19) < 5 * 9.5 / math.sqrt(df.numel())
    assert abs(df.std() / 9.5 - 1) < 5 / math.sqrt(df.numel())  # kurtosis 1.5
    unit = draws.shift.double() * (1 + df).sqrt()
    assert scipy.stats.kstest(unit.flatten().numpy(), "norm").pvalue > 1e-4
    torch.testing.assert_close(
        draws.log_density, prior.log_prob(make_model().space, draws.shift, draws.scale, draws.hyper)
    )


def three_layers(truth, channels=200):
    """Latents of three layers with known batch sizes, 200 channels each."""
    space = LatentSpace(tuple(LatentLayer(f"l{i}", channels, "Batch") for i in range(3)))
    pairs = [pair(BatchNoise(n), channels, torch.zeros(1).double()) for n in truth]
    values = {
        "shift": torch.cat([shift.sample() for shift, _ in pairs]),
        "scale": torch.cat([scale.sample() for _, scale in pairs]),
    }
    return space, values


TRUTH = [6.0, 40.0, 300.0]


def test_recovers_the_batch_sizes_by_nuts():
    """Within 4 posterior deviations of log n each: a false alarm at 2e-4 in all."""
    prior = HierarchicalBatchNoise(64.0, 1.0)
    space, values = three_layers(TRUTH)
    model = poutine.condition(lambda: prior.sample(space, values["shift"]), values)
    mcmc = MCMC(NUTS(model, init_strategy=pn.init_to_neutral), 150, 100, disable_progbar=True)
    mcmc.run()
    log_n = (1 + mcmc.get_samples()["df"]).log()
    # 1/sqrt(channels) is the deviation that the information of the latents gives
    assert ((log_n.std(0) > 0.05) & (log_n.std(0) < 0.11)).all()
    truth = torch.tensor(TRUTH, dtype=torch.float64).log()
    assert ((log_n.mean(0) - truth).abs() < 4 * log_n.std(0)).all()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_guide_recovers_the_batch_sizes(elbo):
    """The mean within 4 deviations of the truth (2e-4), deviations those of the exact posterior."""
    prior = HierarchicalBatchNoise(64.0, 1.0)
    space, values = three_layers(TRUTH)
    model = poutine.condition(lambda: prior.sample(space, values["shift"]), values)
    guide = HyperGuide(prior, space, values["shift"])
    loss = elbo(num_particles=8, vectorize_particles=True, max_plate_nesting=0)
    optimizer = torch.optim.Adam(guide.parameters(), 0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss.differentiable_loss(model, guide).backward()
        optimizer.step()
        schedule.step()
    loc, std = guide.loc[0].detach(), guide.log_std[0].detach().exp()
    truth = (torch.tensor(TRUTH, dtype=torch.float64) - 1).log()
    assert ((loc - truth).abs() < 4 * std).all()
    # The exact posterior of log(n - 1), on a grid.
    grid = torch.linspace(0, 8, 4001, dtype=torch.float64)
    for g in range(3):
        df = guide.loc[0].detach().exp().expand(4001, 3).clone()
        df[:, g] = grid.exp()
        rows = {k: v.expand(4001, -1) for k, v in values.items()}
        log_p = prior.log_prob(space, rows["shift"], rows["scale"], {"df": df}) + grid
        weight = (log_p - log_p.logsumexp(0)).exp()
        mean = (weight * grid).sum()
        exact = (weight * (grid - mean).square()).sum().sqrt()
        assert abs(loc[g] - mean) < 0.3 * exact
        assert std[g].item() == pytest.approx(exact.item(), rel=0.25)


def test_both_elbos_and_several_draws_estimate_one_number():
    """Means of 150 losses each, within 4.5 standard errors: false alarms at 3e-5 in all."""
    model = make_model(draws=4, prior=HierarchicalBatchNoise(9.0, 3.0))
    guide = make_guide("MeanField", model)
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    found = []
    for draws, elbo in ((1, Trace_ELBO()), (1, TraceMeanField_ELBO()), (4, TraceMeanField_ELBO())):
        model.draws = draws
        losses = torch.tensor([elbo.loss(model, guide, x, y) for _ in range(150)])
        found.append((losses.mean(), losses.var() / 150))
    for mean, variance in found[1:]:
        assert abs(mean - found[0][0]) < 4.5 * (variance + found[0][1]).sqrt()


def test_export():
    model = make_model(prior=HierarchicalBatchNoise(16.0, 3.0))
    data = torch.randn(50, 5), torch.randint(3, (50,))
    guide = make_guide("MeanField", model)
    draws = as_posterior(guide, "test").draw(model, 30)
    idata = to_arviz(model, guide, data, 30, seed=1)
    posterior, stats = idata["posterior"], idata["sample_stats"]
    assert posterior["batch_size"].dims == ("chain", "draw", "batch_size_group")
    assert list(posterior["batch_size_group"].values) == ["1", "4"]
    assert idata["prior"]["batch_size"].shape == (1, 30, 2)
    assert (posterior["batch_size"] > 1).all()
    latents = [torch.from_numpy(posterior[k].values[0]) for k in ("shift", "scale", "batch_size")]
    expected = model.prior.log_prob(model.space, *latents[:2], {"df": latents[2] - 1})
    np.testing.assert_allclose(stats["log_prior"].values[0], expected.numpy(), rtol=1e-4, atol=1e-3)
    with torch.no_grad(), pyro.plate("p", 30, dim=-2):
        values = {k: v[:, None] for k, v in [*draws.hyper.items()]}
        values |= {"shift": draws.shift[:, None], "scale": draws.scale[:, None]}
        trace = poutine.trace(poutine.condition(guide, values)).get_trace()
        trace.compute_log_prob()
    log_q = sum(trace.nodes[k]["log_prob"][:, 0] for k in ("df", "shift", "scale"))
    torch.testing.assert_close(draws.log_density, log_q)
    assert math.isfinite(pn.diagnostics.pareto_k(idata).k)
    # A bank knows no batch size: its prior density is the marginal one.
    bank = make_bank(model)
    idata = to_arviz(model, bank, data, 40)
    assert "batch_size" not in idata["posterior"]
    np.testing.assert_allclose(
        idata["sample_stats"]["log_prior"].values[0],
        model.prior.marginal_log_prob(model.space, bank.shift, bank.scale).numpy(),
        rtol=1e-5,
    )


def test_nuts_and_autoguides():
    model = make_model(prior=HierarchicalBatchNoise(16.0, 3.0))
    data = torch.randn(50, 5), torch.randint(3, (50,))
    chains = pn.run_nuts(model, data, 6, 6, 2, max_tree_depth=4, seed=1, progress=False)
    assert chains.hyper["df"].shape == (12, 2)
    idata = to_arviz(model, chains, data)
    np.testing.assert_array_equal(
        idata["posterior"]["batch_size"].values.reshape(12, 2), 1 + chains.hyper["df"].numpy()
    )
    assert chains.draw(model, 3).hyper["df"].shape == (3, 2)
    model.requires_grad_(False).eval()
    guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(*data)
    start = guide.median()["df"]
    torch.testing.assert_close(start, torch.full((2,), 15.0), rtol=0.1, atol=0)
    idata = to_arviz(model, guide, data, 30)
    assert idata["posterior"]["batch_size"].shape == (1, 30, 2)
    assert math.isfinite(pn.diagnostics.pareto_k(idata).k)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    model = make_model(prior=HierarchicalBatchNoise(16.0)).eval()
    guide = make_guide("MeanField", model)
    found = Predictive(model, guide=guide, num_samples=7, parallel=parallel)(torch.randn(9, 5))
    assert found["y"].shape == (7, 9)
    assert Predictive(model, num_samples=7)(torch.randn(9, 5))["df"].shape[0] == 7


class Shifted(Prior):
    """A hierarchical prior of a user, with nothing but what it needs."""

    def law(self, space, like):
        hyper = {"m": pyro.distributions.Normal(like.new_zeros(2), 1.0).to_event(1)}
        return Hierarchical(hyper, lambda values: Standard().law(space, like))


def test_refusals():
    with pytest.raises(OptionError, match="batch_size must be a finite number above 1"):
        HierarchicalBatchNoise(1.0)
    for concentration in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="concentration must be positive and finite"):
            HierarchicalBatchNoise(8.0, concentration)
    with pytest.raises(OptionError, match="does not say how to integrate"):
        Shifted().log_prob(SPACE, torch.zeros(5), torch.ones(5), {})
