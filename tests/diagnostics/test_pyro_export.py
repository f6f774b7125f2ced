"""Any Pyro model is exported with its own sites, whose values are those of its handlers."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyronorm as pn
from pyronorm import to_arviz
from pyronorm.errors import DataError, OptionError

CODE = 2


@pytest.fixture
def vae():
    """A decoder with batch normalization, its statistics from a guide, codes from an encoder."""
    body = nn.Sequential(nn.Linear(CODE, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    decoder = pn.LatentNetwork(pn.convert(body), prefix="decoder.").eval()
    pn.trust_statistics(decoder)
    encoder = nn.Linear(3, 2 * CODE)
    statistics = pn.guides.MeanField(decoder, 0.3)

    def model(x):
        pyro.module("decoder", decoder)
        shift, scale = pn.sample_latents(decoder, pn.priors.BatchNoise(16))
        with pyro.plate("image", len(x)), pyro.poutine.scale(scale=7.0):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            logits = decoder(z, shift, scale)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        statistics()
        with pyro.plate("image", len(x)), pyro.poutine.scale(scale=7.0):
            loc, log_std = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_std.exp()).to_event(1))

    return model, guide, decoder


def test_a_variational_autoencoder(vae):
    model, guide, decoder = vae
    x = torch.bernoulli(torch.full((5, 3), 0.4))
    before = torch.get_rng_state()
    idata = to_arviz(model, guide, (x,), 6, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    posterior = idata["posterior"]
    assert set(posterior.data_vars) == {"decoder.shift", "decoder.scale", "z"}
    assert posterior["decoder.shift"].dims == ("chain", "draw", "decoder.channel")
    assert list(posterior["decoder.channel"].values) == list(decoder.space.channel_labels)
    assert list(idata["constant_data"]["decoder.layer"].values) == ["1"] * 4
    assert posterior["z"].dims == ("chain", "draw", "image", "z_dim_1")
    assert posterior["z"].shape == (1, 6, 5, CODE)
    assert idata["observed_data"]["x"].dims == ("image", "x_dim_1")
    assert idata["posterior_predictive"]["x"].shape == (1, 6, 5, 3)
    assert idata["log_likelihood"]["x"].shape == (1, 6, 5)
    for s in range(6):
        shift, scale, z = (
            torch.from_numpy(posterior[name].values[0, s].copy())
            for name in ("decoder.shift", "decoder.scale", "z")
        )
        logits = decoder(z, shift, scale)
        expected = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(
            1
        )
        found = idata["log_likelihood"]["x"].values[0, s]
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert set(np.unique(idata["posterior_predictive"]["x"].values)) <= {0.0, 1.0}
    # the posterior's draws, not the prior's
    assert posterior["decoder.shift"].values.std() > 0.2
    az.summary(idata, var_names=["decoder.scale"])
    az.loo(to_arviz(model, guide, (x,), 50))


def test_a_hierarchical_regression_with_plates_and_an_autoguide():
    network = pn.LatentNetwork(pn.convert(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))))
    x, group = torch.randn(12, 2), torch.arange(12) % 4

    def model(x, group, y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("school", 4):
            offset = pyro.sample("offset", dist.Normal(mean, 0.5))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.3))
        shift, scale = pn.sample_latents(network, pn.priors.Standard(0.2, 0.2))
        with pyro.plate("pupil", len(x)):
            loc = network(x, shift, scale).sum(-1) + offset[..., group]
            return pyro.sample("y", dist.Normal(loc, noise), obs=y)

    y = torch.randn(12)
    guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral)
    guide(x, group, y)
    idata = to_arviz(model, guide, (x, group, y), 8, seed=1)
    posterior = idata["posterior"]
    assert set(posterior.data_vars) == {"mean", "offset", "noise", "shift", "scale"}
    assert posterior["offset"].dims == ("chain", "draw", "school")
    assert posterior["noise"].shape == (1, 8)
    assert posterior["shift"].dims == ("chain", "draw", "channel")
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "pupil")
    s = {name: torch.tensor(posterior[name].values[0, 3]) for name in posterior.data_vars}
    loc = network(x, s["shift"], s["scale"]).sum(-1) + s["offset"][group]
    expected = torch.distributions.Normal(loc, s["noise"]).log_prob(y).detach()
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0, 3], expected, rtol=1e-4)


def test_chains_of_pyro():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.3, 1.2, -0.5])
    run = MCMC(NUTS(model), 10, 5, disable_progbar=True)
    run.run(y)
    idata = to_arviz(model, run, (y,))
    means = run.get_samples()["mean"]
    np.testing.assert_array_equal(idata["posterior"]["mean"].values[0], means.numpy())
    expected = torch.distributions.Normal(means[:, None], 1.0).log_prob(y)
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], expected, rtol=1e-5)
    assert to_arviz(model, run, (y,), 4)["posterior"]["mean"].shape == (1, 4)


def test_a_bayesian_last_layer_beside_the_latents():
    """Sites of the user's own are replayed from the guide, not drawn from their prior."""

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            body = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
            self.body = pn.LatentNetwork(pn.convert(body))
            self.last = PyroModule[nn.Linear](3, 1)
            self.last.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))

        def forward(self, x, y=None):
            shift, scale = pn.sample_latents(self.body, pn.priors.Standard(0.1, 0.1))
            loc = self.last(self.body(x, shift, scale)).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(loc, 0.1), obs=y)

    model = Net()
    x, y = torch.randn(6, 2), torch.randn(6)

    def guide(x, y):
        pyro.sample("last.weight", dist.Normal(torch.full((1, 3), 5.0), 0.01).to_event(2))
        pyro.sample("shift", dist.Normal(torch.zeros(3), 0.01).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.01).to_event(1))

    idata = to_arviz(model, guide, (x, y), 4)
    assert abs(idata["posterior"]["last.weight"].values - 5.0).max() < 0.1
    predicted = idata["posterior_predictive"]["y"].values[0].mean(0)
    expected = model.body(x).sum(-1).detach().numpy() * 5 + model.last.bias.item()
    np.testing.assert_allclose(predicted, expected, atol=0.5)


def test_refusals(vae):
    model, guide, _ = vae
    x = torch.zeros(5, 3)
    with pytest.raises(
        OptionError, match=r"no values for the sites \['decoder.shift', 'decoder.scale'"
    ):
        to_arviz(model, lambda x: pyro.sample("z", dist.Normal(torch.zeros(5, 2), 1.0)), (x,), 2)
    with pytest.raises(OptionError, match="must be its guide or a finished MCMC run, got str"):
        to_arviz(model, "guide", (x,), 2)
    with pytest.raises(OptionError, match="num_samples must be at least 1"):
        to_arviz(model, guide, (x,), 0)
    sizes = iter(range(2, 99))

    def growing():
        pyro.sample("a", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    def any_size():
        pyro.sample("a", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    with pytest.raises(DataError, match="other shapes in other draws"):
        to_arviz(growing, any_size, (), 3)


def test_what_is_no_model_for_the_data_is_refused():
    for wrong, says in (
        (nn.Linear, "got the class Linear"),
        (nn.Linear(3, 2), "Linear is called with data, .* and does not take these 2"),
    ):
        with pytest.raises(OptionError, match=says):
            to_arviz(wrong, AutoNormal(lambda *_: None), (torch.zeros(4, 3), torch.zeros(4)))
