"""Sites that a network samples itself are replayed with the latents: oracle, Pyro's own handlers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError, StatisticsError
from pyronorm.infer import RecordedNUTS, as_posterior


class Net(PyroModule):
    """A Bayesian last layer behind a batch normalization; its weights have a common scale."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.norm = norm(6)
        self.last = PyroModule[nn.Linear](6, 2)
        self.last.tau = PyroSample(dist.LogNormal(0.0, 0.3))
        self.last.weight = PyroSample(
            lambda last: dist.Normal(0.0, last.tau).expand([2, 6]).to_event(2)
        )

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


def data(n=64):
    x = torch.randn(n, 3)
    return x, (x[:, 0] > 0).long()


def make(n=64, norm=nn.BatchNorm1d):
    return pn.NormalizationModel(pn.convert(Net(norm)), pn.likelihoods.Categorical(), n)


def autonormal(model, x, y, steps=0):
    """Trained; Pyro's autoguides of one class share what its store has."""
    pyro.clear_param_store()
    guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral, init_scale=0.2)
    guide(x, y)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    pn.estimate_population_statistics(model, x)
    return guide


def test_predictions_are_pyros():
    """A classifier that only its last weights make one; draws of their prior would guess."""
    x, y = data()
    model = make()
    guide = autonormal(model, x, y, steps=100)
    prediction = pn.predict(model, guide, x, 40, seed=0)
    assert (prediction.mean.argmax(-1) == y).double().mean() > 0.95
    model.eval()
    votes = Predictive(model, guide=guide, num_samples=100)(x)["y"].double().mean(0)
    # standard errors of at most .05 by the votes, and .05 by the draws
    assert (votes - prediction.mean[:, 1]).abs().max() < 0.25


def test_every_draw_is_the_model_with_these_values():
    x, y = data(9)
    model = make(9)
    guide = autonormal(model, x, y)
    draws = as_posterior(guide, "test").draw(model, 4, seed=1)
    assert {n: tuple(v.shape) for n, v in draws.others.items()} == {
        "last.tau": (4,),
        "last.weight": (4, 2, 6),
    }
    model.eval()
    samples = pn.predict(model, draws, x).samples
    idata = pn.to_arviz(model, draws, (x, y), prior_predictive=True, seed=0)
    prior = idata["prior"]["last.weight"].values
    assert prior.shape == idata["posterior"]["last.weight"].shape == (1, 4, 2, 6)
    for s in range(4):
        values = {"shift": draws.shift[s], "scale": draws.scale[s]}
        values |= {name: value[s] for name, value in draws.others.items()}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y)
        torch.testing.assert_close(samples[s], trace.nodes["y"]["fn"].probs)
        # as many examples as num_data: the log joint density, of all sites
        lp = idata["sample_stats"]["lp"].values[0, s]
        assert lp == pytest.approx(trace.log_prob_sum().item(), rel=1e-5)
        assert draws.log_density is not None
        guide_trace = poutine.trace(poutine.condition(guide, values)).get_trace(x, y)
        assert guide_trace.nodes["last.tau"]["value"] == draws.others["last.tau"][s]


def test_draws_with_them_are_saved_joined_and_picked(tmp_path):
    x, y = data(9)
    model = make(9)
    draws = as_posterior(autonormal(model, x, y), "test").draw(model, 6)
    draws.save(tmp_path / "draws.safetensors")
    back = pn.Draws.load(tmp_path / "draws.safetensors")
    assert torch.equal(pn.predict(model, back, x).mean, pn.predict(model, draws, x).mean)
    both = pn.Draws.join([draws, back])
    assert torch.equal(both.others["last.weight"][6:], draws.others["last.weight"])
    assert both.draw(model, 4).others["last.weight"].shape == (4, 2, 6)
    pair = pn.Ensemble([(model, draws), (model, back)])
    torch.testing.assert_close(pn.predict(model, pair, x, 6).mean, pn.predict(model, draws, x).mean)


def test_a_guide_of_the_library_and_one_for_the_rest():
    x, y = data()
    model = make()
    ours = pn.guides.MeanField(model, 0.05)
    guide = AutoGuideList(model)
    guide.append(ours)
    guide.append(AutoNormal(poutine.block(model, hide=["shift", "scale"])))
    pn.fit(model, guide, (x, y), epochs=25, batch_size=32, lr=0.05, progress=False, seed=0)
    assert pn.evaluate(model, guide, (x, y), seed=0)["accuracy"] > 0.9
    with pytest.raises(OptionError, match=r"samples \['last.tau', 'last.weight'\].*no values"):
        pn.predict(model, ours, x)


def test_chains_have_them():
    x, y = data(12)
    model = make(12, nn.LayerNorm).eval()
    for parameter in model.network.parameters():
        parameter.requires_grad_(False)
    run = MCMC(RecordedNUTS(model, max_tree_depth=3), 6, 4, disable_progbar=True)
    run.run(x, y)
    prediction = pn.predict(model, run, x)
    values = {name: value[2] for name, value in run.get_samples().items()}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x)
    torch.testing.assert_close(prediction.samples[2], trace.nodes["y"]["fn"].probs)
    assert {"energy", "tree_depth"} <= set(
        pn.to_arviz(model, run, (x, y))["sample_stats"].data_vars
    )


class Before(PyroModule):
    """What has a prior comes before the batch normalization."""

    def __init__(self):
        super().__init__()
        self.first = PyroModule[nn.Linear](3, 6)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.first(x))


def test_batch_statistics_after_a_draw_need_its_value():
    network = pn.convert(Before())
    x = torch.randn(20, 3)
    with pytest.raises(
        StatisticsError, match=r"norm runs after the network has drawn \['first.wei"
    ):
        pn.estimate_population_statistics(network, x)
    weight = torch.randn(6, 3)
    with poutine.condition(data={"first.weight": weight}):
        pn.estimate_population_statistics(network, x)
        bank = pn.collect_bank(network, x, 3, batch_size=10)
    values = nn.functional.linear(x, weight, network.first.bias)
    torch.testing.assert_close(network.norm.running_mean, values.mean(0))
    assert len(bank) == 3
    with pytest.raises(StatisticsError, match="collect_bank: norm runs after"):
        pn.collect_bank(network, x, 3, batch_size=10)


class Local(nn.Module):
    """A site for every example, in a network that is no PyroModule."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(x) + pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))


def test_refusals():
    x, y = torch.randn(8, 3), torch.randint(3, (8,))
    model = pn.NormalizationModel(pn.convert(Local()), pn.likelihoods.Categorical(), 8)
    with pytest.raises(OptionError, match=r"samples \['z'\].*no values"):
        pn.predict(model, pn.guides.Point(model), x)
    guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral)
    guide(x, y)
    with pytest.raises(ShapeError, match=r"'z' has shape \(8, 3\), but for one example.*\(1, 3\)"):
        pn.predict(model, guide, x)
    draws = pn.Draws(torch.zeros(2, 3), torch.ones(2, 3), others={"w": torch.zeros(2)})
    plain = pn.NormalizationModel(
        pn.convert(nn.Sequential(nn.LayerNorm(3))), pn.likelihoods.Categorical(), 8
    )
    with pytest.raises(OptionError, match=r"values for \['w'\], which the network does not sample"):
        pn.predict(plain, draws, x)
    bayesian = make(8, nn.LayerNorm)
    with pytest.raises(DataError, match="to_arviz: the prior needs data"):
        pn.to_arviz(bayesian, autonormal(bayesian, x, y % 2), None, 3)


class Noise(pn.likelihoods.Likelihood):
    def __init__(self):
        super().__init__()
        self.noise = PyroModule()
        self.noise.std = PyroSample(dist.LogNormal(0.0, 1.0))

    def distribution(self, output, num_sample_dims=0):
        return dist.Normal(output.squeeze(-1), self.noise.std)


def test_a_likelihood_with_sites_of_its_own_is_refused():
    network = pn.convert(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)))
    model = pn.NormalizationModel(network, Noise(), 8)
    with pytest.raises(OptionError, match=r"Noise has Pyro sites of its own, \['std'\]"):
        pn.predict(model, pn.guides.Point(model), torch.randn(8, 3))


def test_refreshed_draws_keep_them():
    """The first layer's statistics do not depend on the draw, so nothing else changes either."""
    x, y = data(20)
    model = make(20)
    draws = as_posterior(autonormal(model, x, y), "test").draw(model, 3)
    refreshed = pn.refresh_draws(model, draws, x)
    assert torch.equal(refreshed.others["last.weight"], draws.others["last.weight"])
    torch.testing.assert_close(refreshed.scale, draws.scale, rtol=1e-4, atol=1e-5)


def test_a_network_that_samples_nothing_is_asked_once_for_inputs_of_a_kind():
    network = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), 9)
    guide, x = pn.guides.MeanField(model), torch.randn(9, 3)
    sizes = []
    model.network.network.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    pn.predict(model, guide, x, 1)
    pn.predict(model, guide, x, 1)
    assert sizes == [1, 9, 9]
    model.network.network[2] = PyroModule[nn.Linear](4, 2)
    model.network.network[2].weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
    with pytest.raises(OptionError, match="the posterior has no values"):
        pn.predict(model, guide, x, 1)
