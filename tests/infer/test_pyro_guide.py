from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoLowRankMultivariateNormal, AutoNormal

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer import PyroGuide, as_posterior
from tests.guides.cases import CASES, make_guide, make_model
from tests.nets import mlp


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_density(case):
    model = make_model(draws=3)
    draws = as_posterior(make_guide(case, model), "test").draw(model, 7)
    assert draws.shift.shape == draws.scale.shape == (7, 10)
    assert (draws.log_density is None) == (case in ("Point", "MAP", "MonteCarloBatchNorm"))
    assert len(draws) == 7


def test_density_of_a_mean_field_guide():
    model = make_model()
    guide = make_guide("MeanField", model)
    draws = as_posterior(guide, "test").draw(model, 5)
    shift = torch.distributions.Normal(torch.zeros(10), 0.03).log_prob(draws.shift).sum(1)
    scale = torch.distributions.LogNormal(torch.zeros(10), 0.03).log_prob(draws.scale).sum(1)
    torch.testing.assert_close(draws.log_density, shift + scale)


@pytest.mark.parametrize("make", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta])
def test_autoguides(make):
    model = make_model()
    guide = make(model)
    with pytest.raises(OptionError, match=rf"{make.__name__} has not been trained"):
        as_posterior(guide, "test").draw(model, 5)
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    draws = as_posterior(guide, "test").draw(model, 5)
    assert draws.shift.shape == (5, 10)
    assert (draws.log_density is None) == (make is AutoDelta)


def test_density_of_a_joint_autoguide_includes_the_jacobian():
    model = make_model()
    guide = AutoLowRankMultivariateNormal(model, rank=2)
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    draws = as_posterior(guide, "test").draw(model, 5)
    posterior = guide.get_posterior()
    z = torch.cat([draws.shift, draws.scale.log()], -1)
    expected = posterior.log_prob(z) - draws.scale.log().sum(1)
    torch.testing.assert_close(draws.log_density, expected, rtol=1e-4, atol=1e-4)


def test_a_guide_of_ones_own_gets_the_first_batch():
    model = make_model()
    seen = []

    def guide(x, y):
        seen.append(len(x))
        shift = dist.Normal(torch.zeros(10), x.std()).to_event(1)
        pyro.sample("shift", shift)
        pyro.sample("scale", dist.LogNormal(torch.zeros(10), 0.1).to_event(1))

    draws = PyroGuide(guide).draw(model, 6, data=[(torch.randn(4, 5), torch.zeros(4))])
    assert set(seen) == {4}
    assert draws.log_density.shape == (6,)


def test_the_models_mode_is_kept():
    model = make_model()
    as_posterior(make_guide("MeanField", model), "test").draw(model, 2)
    assert model.training


def test_errors():
    model = make_model()
    with pytest.raises(OptionError, match="num_samples must be at least 1, an integer, got 0"):
        as_posterior(make_guide("Point", model), "test").draw(model, 0)
    with pytest.raises(ShapeError, match="does not sample the site 'shift'"):
        PyroGuide(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).draw(model, 3)

    def other():
        pyro.sample("shift", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))

    with pytest.raises(ShapeError, match=r"shape \(3, 1, 4\) for 3 draws, expected \(3, 1, 10\)"):
        PyroGuide(other).draw(model, 3)


class Easy(EasyGuide):
    """Its parameters are in Pyro's store, not in the module."""

    def guide(self, x, y=None):
        group = self.group(match="shift|scale")
        loc = pyro.param("easy_loc", torch.zeros(group.event_shape))
        std = pyro.param(
            "easy_std", torch.full(group.event_shape, 0.1), constraint=dist.constraints.positive
        )
        group.sample("easy", dist.Normal(loc, std).to_event(1))


def listed(model):
    parts = AutoGuideList(model)
    parts.append(AutoNormal(poutine.block(model, expose=["shift"])))
    parts.append(AutoDelta(poutine.block(model, expose=["scale"])))
    return parts


def with_ours(model):
    parts = AutoGuideList(model)
    parts.append(pn.guides.MeanField(model, 0.1))
    return parts


NEUTRAL = {"init_loc_fn": pn.init_to_neutral}
AUTOGUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": lambda m: autoguide.AutoLowRankMultivariateNormal(m, rank=2),
    "AutoIAFNormal": lambda m: autoguide.AutoIAFNormal(m, hidden_dim=[24]),
    "AutoNormalizingFlow": lambda m: autoguide.AutoNormalizingFlow(m, dist.transforms.Planar),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoStructured": lambda m: autoguide.AutoStructured(m, **NEUTRAL),
    "AutoGaussian": lambda m: autoguide.AutoGaussian(m, **NEUTRAL),
    "AutoNormalMessenger": autoguide.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": autoguide.AutoRegressiveMessenger,
    "AutoGuideList": listed,
    "AutoGuideList with ours": with_ours,
    "EasyGuide": Easy,
}


def small():
    network = pn.convert(mlp(norm=torch.nn.LayerNorm))
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), 24, pn.priors.Standard())


def separable():
    x = torch.randn(24, 5)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.8).long()


@pytest.mark.parametrize("name", AUTOGUIDES)
def test_every_guide_of_pyro_is_trained_and_predicts(name):
    """The draws are like single runs of the guide, trained by SVI."""
    x, y = separable()
    model = small()
    guide = AUTOGUIDES[name](model)
    with pytest.raises(OptionError, match="has not been trained"):
        as_posterior(guide, "test").draw(model, 5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x, y) for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    draws = as_posterior(guide, "test", model).draw(model, 200, data=x, seed=1)
    assert draws.shift.shape == draws.scale.shape == (200, 10)
    points = ("AutoDelta", "AutoLaplaceApproximation", "AutoGuideList")
    assert (draws.log_density is None) == (name in points)
    torch.manual_seed(2)
    traces = [poutine.trace(guide).get_trace(x, y).nodes for _ in range(50)]
    for site in ("shift", "scale"):
        found = getattr(draws, site)
        expected = torch.stack([trace[site]["value"] for trace in traces]).detach()
        error = (found.var(0) / 200 + expected.var(0) / 50).sqrt()
        # 320 comparisons, at 6 standard errors
        assert ((found.mean(0) - expected.mean(0)).abs() <= 6 * error + 1e-4).all()
        ratio = (found.std(0) + 1e-4) / (expected.std(0) + 1e-4)
        assert ratio.log().median().abs() < 0.35
    assert pn.predict(model, guide, x, 20, seed=3).nll(y) < 1.0
    assert pn.to_arviz(model, guide, (x, y), 3, seed=0)["posterior"]["shift"].shape == (1, 3, 10)


@pytest.mark.parametrize(
    "name", ["AutoIAFNormal", "AutoStructured", "AutoNormalMessenger", "AutoGuideList with ours"]
)
def test_fit_trains_guides_of_pyro(name):
    x, y = separable()
    model = small()
    guide = AUTOGUIDES[name](model)
    history = pn.fit(
        model, guide, (x, y), epochs=15, batch_size=12, lr=0.05, seed=0, progress=False
    )
    assert history.epochs[-1].loss < 0.96 * history.epochs[0].loss
    assert pn.predict(model, guide, x, 5).mean.shape == (24, 3)


def test_fit_refuses_parameters_that_it_would_not_train():
    model = small()
    before = model.network.training
    with pytest.raises(OptionError, match=r"Easy states \['easy_loc', 'easy_std'\] by pyro.param"):
        pn.fit(model, Easy(model), separable(), epochs=1, progress=False)
    assert model.network.training == before


def test_a_guide_for_discrete_sites_has_no_latents():
    model = make_model()
    guide = autoguide.AutoDiscreteParallel(poutine.block(model, hide=["shift", "scale"]))
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    with pytest.raises(ShapeError, match="does not sample the site 'shift'"):
        as_posterior(guide, "test").draw(model, 3)


def test_a_guide_that_runs_the_model_needs_data():
    model = small()
    guide = autoguide.AutoNormalMessenger(model)
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    names = {name for name, _ in guide.named_parameters()}
    with pytest.raises(DataError, match="AutoNormalMessenger runs the model"):
        as_posterior(guide, "test").draw(model, 3)
    # y is not given: it is no latent site of the guide for that
    as_posterior(guide, "test").draw(model, 3, data=torch.randn(4, 5))
    assert {name for name, _ in guide.named_parameters()} == names


def test_two_autoguides_of_one_class_each_draw_their_own():
    model = small()
    x, y = separable()
    means = []
    for value in (1.0, -2.0):
        pyro.clear_param_store()  # as Pyro wants it: its autoguides share what the store has
        guide = AutoNormal(model, init_scale=0.01)
        guide(x, y)
        with torch.no_grad():
            guide.locs.shift.fill_(value)
        means.append((guide, value))
    for guide, value in means:
        assert torch.allclose(
            as_posterior(guide, "test").draw(model, 50).shift.mean(0),
            torch.full((10,), value),
            atol=0.02,
        )


@pytest.mark.parametrize("make", [AutoNormal, AutoLowRankMultivariateNormal])
def test_an_autoguide_loads_a_state_after_a_call_without_data(make):
    model = make_model()
    trained, fresh = make(model), make(model)
    trained(torch.randn(4, 5), torch.randint(3, (4,)))
    fresh()
    fresh.load_state_dict(trained.state_dict())
    one, two = (as_posterior(guide, "test").draw(model, 3, seed=1) for guide in (trained, fresh))
    assert torch.equal(one.shift, two.shift)
