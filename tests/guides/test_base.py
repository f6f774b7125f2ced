from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyronorm import LatentNetwork, convert, sample_latents
from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides import BatchNoise, MeanField, Point
from tests.guides.cases import CASES, make_guide, make_model
from tests.nets import mlp


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plates", [(), (4,), (4, 1), (3, 1, 1)])
def test_samples_both_sites_inside_any_plates(case, plates):
    guide = make_guide(case)
    c = guide.space.num_channels

    def in_plates():
        with pyro.plate_stack("p", plates):
            return guide()

    trace = poutine.trace(in_plates).get_trace()
    for site in ("shift", "scale"):
        assert trace.nodes[site]["value"].shape == (*plates, c)
        assert trace.nodes[site]["fn"].batch_shape == plates
    assert (trace.nodes["scale"]["value"] > 0).all()
    if plates and case not in ("Point",):
        values = trace.nodes["scale"]["value"].flatten(0, -2)
        assert len(torch.unique(values, dim=0)) > 1


@pytest.mark.parametrize("case", CASES)
def test_follows_the_draws_of_the_model(case):
    model = make_model(draws=3)
    guide = make_guide(case, model)
    assert poutine.trace(guide).get_trace().nodes["shift"]["value"].shape == (3, 1, 10)
    model.eval()
    assert poutine.trace(guide).get_trace().nodes["shift"]["value"].shape == (10,)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_round_trip(case):
    torch.manual_seed(1)
    guide = make_guide(case)
    other = make_guide(case)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other.load_state_dict(guide.state_dict())
    for g in (guide, other):
        torch.manual_seed(5)
        g.values = g()
    assert torch.equal(guide.values["scale"], other.values["scale"])


@pytest.mark.parametrize("case", CASES)
def test_does_not_own_the_model(case):
    guide = make_guide(case)
    assert not any("network" in name for name in guide.state_dict())
    assert all("network" not in name for name, _ in guide.named_parameters())


@pytest.mark.parametrize("make", [Point, MeanField, lambda n: BatchNoise(n, 16)])
def test_guides_of_a_network_inside_a_model_of_ones_own(make):
    network = LatentNetwork(convert(mlp(2, 6, 1)), prefix="net.")
    guide = make(network)

    def model(x, y):
        pyro.module("net", network)
        mean = network(x, *sample_latents(network))[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    x = torch.randn(20, 2)
    losses = [svi.step(x, x[:, 0]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.usefixtures("unchecked")
def test_needs_a_model():
    with pytest.raises(
        OptionError, match="Point: expected a NormalizationModel, .* got Sequential"
    ):
        Point(convert(mlp()))


def test_vectors_must_fit_the_channels():
    guide = make_guide("MeanField")
    assert guide._vector(2.0, "loc").shape == (10,)
    with pytest.raises(ShapeError, match=r"loc must be a number or have shape \(10,\), got \(3,\)"):
        guide._vector(torch.zeros(3), "loc")
