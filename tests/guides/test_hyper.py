"""The factor for a prior's hyperparameters in every guide."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

import pyronorm as pn
from pyronorm import NormalizationModel, convert, fit
from pyronorm.errors import OptionError
from pyronorm.guides import HyperGuide
from pyronorm.likelihoods import Categorical
from pyronorm.priors import HierarchicalBatchNoise
from tests.guides.cases import CASES, make_guide, make_model
from tests.nets import mlp
from tests.priors.test_hierarchical import Shifted


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draws", [1, 3])
def test_guides_have_a_factor_for_it(case, draws):
    model = make_model(draws=draws, prior=HierarchicalBatchNoise(16.0))
    guide = make_guide(case, model)
    nodes = poutine.trace(guide).get_trace().nodes
    assert ("df" in nodes) == guide.has_density
    if guide.has_density:
        plates = () if draws == 1 else (3, 1)
        assert nodes["df"]["value"].shape == (*plates, 2)
        assert guide()["df"].shape == (*plates, 2)
        assert {"hyper.loc.0", "hyper.log_std.0"} <= set(guide.state_dict())


@pytest.mark.parametrize("case", ["MeanField", "EffectiveBatchSize", "LowRank", "Point"])
@pytest.mark.parametrize("draws", [1, 5])
def test_fit_trains_it(case, draws):
    network = convert(mlp(norm=lambda c: torch.nn.GroupNorm(2, c)))
    model = NormalizationModel(network, Categorical(), 50, HierarchicalBatchNoise(16.0), draws)
    guide = make_guide(case, model)
    x = torch.randn(50, 5)
    before = [p.detach().clone() for p in guide.hyper.parameters()]
    history = fit(model, guide, (x, (x[:, 0] > 0).long()), epochs=2, progress=False)
    assert math.isfinite(history.losses[-1])
    for old, new in zip(before, guide.hyper.parameters(), strict=True):
        assert (old != new).all()


def test_in_a_model_of_ones_own():
    """Sites carry the prefix, and the guide calls the factor itself."""
    network = pn.LatentNetwork(convert(mlp(2, 6, 1)), prefix="net.")
    prior = HierarchicalBatchNoise(16.0)
    inner = pn.guides.MeanField(network)
    hyper = HyperGuide(prior, network.space, network.like)

    def model(x, y):
        mean = network(x, *pn.sample_latents(network, prior))[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", pyro.distributions.Normal(mean, 1.0), obs=y)

    def guide(x, y):
        hyper()
        inner()

    x = torch.randn(20, 2)
    loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, x[:, 0])
    loss.backward()
    assert (hyper.loc[0].grad != 0).all()
    assert hyper.sites == ("net.df",)


def test_refusals():
    model = make_model()
    with pytest.raises(OptionError, match="has no hyperparameters"):
        HyperGuide(model.prior, model.space, torch.zeros(1))
    with pytest.raises(OptionError, match="the prior is set once"):
        model.prior = HierarchicalBatchNoise()
    with pytest.raises(OptionError, match="log-normal, for positive hyperparameters; 'm'"):
        HyperGuide(Shifted(), model.space, torch.zeros(1))
