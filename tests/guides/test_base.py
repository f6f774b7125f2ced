from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoCallable, AutoGuideList

from pyronorm import LatentNetwork, convert, sample_latents
from pyronorm.errors import NoDensityError, OptionError, ShapeError
from pyronorm.guides import BatchNoise, Fixed, Guide, MeanField, Point
from pyronorm.priors import HierarchicalBatchNoise, Standard
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
    if plates and case not in ("Point", "MAP"):
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
        mean = network(x, *sample_latents(network, Standard()))[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    x = torch.randn(20, 2)
    losses = [svi.step(x, x[:, 0]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.usefixtures("unchecked")
def test_needs_a_model():
    with pytest.raises(
        OptionError, match="Point: model must be a NormalizationModel, .* got Sequential"
    ):
        Point(convert(mlp()))


def test_vectors_must_fit_the_channels():
    guide = make_guide("MeanField")
    assert guide._vector(2.0, "loc").shape == (10,)
    with pytest.raises(ShapeError, match=r"loc must be a number or have shape \(10,\), got \(3,\)"):
        guide._vector(torch.zeros(3), "loc")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("hierarchical", [False, True])
def test_settings_and_state_make_the_guide_again(case, hierarchical):
    prior = HierarchicalBatchNoise(16.0) if hierarchical else None
    model = make_model(prior=prior)
    torch.manual_seed(1)
    guide = make_guide(case, model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    settings = json.loads(json.dumps(guide.settings()))
    other = type(guide).from_settings(model, settings)
    other.load_state_dict(guide.state_dict())
    a, b = guide.draw(model, 5, seed=2), other.draw(model, 5, seed=2)
    assert torch.equal(a.shift, b.shift)
    assert torch.equal(a.scale, b.scale)
    assert other.settings() == guide.settings()


@pytest.mark.parametrize("case", CASES)
def test_draws_are_those_of_pyro_with_their_density(case):
    """Pyro's trace in a plate of draws is the oracle; nothing is traced for it."""
    model = make_model()
    guide = make_guide(case, model)
    state = torch.get_rng_state()
    draws = guide.draw(model, 6, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    with pyro.plate("draws", 6, dim=-2):
        trace = poutine.trace(guide).get_trace()
    for site in ("shift", "scale"):
        value = trace.nodes[site]["value"].squeeze(1)
        torch.testing.assert_close(getattr(draws, site), value, rtol=1e-5, atol=1e-6)
    if draws.log_density is None:
        assert guide.is_point or not guide.has_density
        return
    trace.compute_log_prob()
    terms = [
        site["log_prob"].reshape(6, -1).sum(1)
        for site in trace.nodes.values()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    ]
    torch.testing.assert_close(draws.log_density, sum(terms), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_medians_and_quantiles(case):
    """They are those of 2,000 draws within 5 standard errors of the share below."""
    model = make_model()
    guide = make_guide(case, model)
    if case.startswith(("Flow", "Mixture", "PopulationStatistics")):
        with pytest.raises(OptionError, match="no closed form here, so there are no exact medians"):
            guide.median()
        return
    median, both = guide.median(), guide.quantiles([0.5, 0.9])
    draws = guide.draw(model, 2000, seed=1)
    for site in ("shift", "scale"):
        assert torch.equal(median[site], both[site][0])
        if not guide.is_point:
            share = (getattr(draws, site)[:, None] <= both[site]).double().mean(0)
            assert (share[0] - 0.5).abs().max() < 5 * 0.5 / 2000**0.5 + 0.5 / 40
            assert (share[1] - 0.9).abs().max() < 5 * 0.3 / 2000**0.5 + 0.5 / 40  # rows interpolate


def test_posterior_in_one_vector():
    model = make_model()
    found = make_guide("LowRank", model).get_posterior()
    assert found.event_shape == (20,)
    with pytest.raises(OptionError, match=r"MeanField is not one distribution of a vector"):
        make_guide("MeanField", model).get_posterior()


def test_medians_in_a_list_of_autoguides():
    """Pyro's AutoGuideList asks its parts; a guide says its medians there as AutoCallable does."""
    model = make_model(prior=HierarchicalBatchNoise(16.0))
    guide = make_guide("MeanField", model)
    both = AutoGuideList(model)
    both.append(AutoCallable(model, guide, guide.median))
    assert set(both.median()) == {"df", "shift", "scale"}
    torch.testing.assert_close(both.median()["df"], torch.full((2,), 15.0))


@pytest.mark.parametrize("case", CASES)
def test_kl_is_that_of_draws(case):
    model = make_model(prior=Standard(0.4, 0.5))
    guide = make_guide(case, model)
    if guide.is_point or not guide.has_density:
        with pytest.raises(NoDensityError):
            guide.kl(model.prior)
        return
    draws = guide.draw(model, 4000, seed=3)
    ratio = draws.log_density - model.prior.log_prob(model.space, draws.shift, draws.scale, {})
    error = 5 * ratio.std() / 4000**0.5 + 1e-4
    exact = not case.startswith(
        ("Paired", "Flow", "LowRankLaplace", "Mixture", "PopulationStatistics")
    )
    found = guide.kl(model.prior, None if exact else 4000)
    assert abs(found - ratio.mean()) < (error if exact else 2 * error)
    if not exact:
        with pytest.raises(OptionError, match="no closed form"):
            guide.kl(model.prior)


def test_a_guide_of_another_network_is_refused():
    guide, other = make_guide("MeanField"), make_model(network=mlp(5, 4))
    with pytest.raises(ShapeError, match="MeanField: the guide was made for another network"):
        guide.draw(other, 3)
    with pytest.raises(OptionError, match="num_samples must be at least 1, an integer, got 0"):
        guide.draw(make_model(), 0)


def test_a_guide_of_ones_own_keeps_its_arguments():
    class Own(Guide):
        def __init__(self, model, width):
            super().__init__(model)
            self.w = width

        def law(self):
            return Point(self).law()

    with pytest.raises(OptionError, match="its argument 'width' cannot be saved; keep it as"):
        Own(make_model(), 0.3).settings()


def test_repr_shows_settings_and_channels():
    model = make_model()
    assert repr(MeanField(model, 0.2)) == "MeanField(init_std=0.2, 10 channels)"
    fixed = Fixed(model, Standard(0.3, 0.2))
    assert repr(fixed) == "Fixed(Standard(shift_std=0.3, log_scale_std=0.2), 10 channels)"

    class Forgets(MeanField):
        def __init__(self, model, option):
            super().__init__(model)

    assert repr(Forgets(model, 3)) == "Forgets(10 channels)"
