"""Everything that gives draws goes where a posterior is expected; everything else is refused by name."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyronorm as pn
from pyronorm import diagnostics
from pyronorm.diagnostics import calibrate, simulation_based_calibration
from pyronorm.errors import OptionError
from pyronorm.infer import Posterior, as_posterior, log_likelihoods, predictive_nll
from pyronorm.infer.refresh import refresh_draws
from pyronorm.latents import Draws
from pyronorm.laws import Independent
from pyronorm.priors import Standard
from tests.guides.cases import CASES, make_bank, make_guide, make_model


def data(n: int = 9):
    return torch.randn(n, 5), torch.randint(3, (n,))


class Easy(EasyGuide):
    def guide(self, x, y=None):
        group = self.group(match="shift")
        group.sample("shift_group", dist.Normal(torch.zeros(10), 0.1).to_event(1))
        self.map_estimate("scale")


def function(model):
    def guide(x=None, y=None):
        pyro.sample("shift", dist.Normal(torch.zeros(10), 0.1).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(10), 0.1).to_event(1))

    return pn.PyroGuide(guide)


def trained(make):
    def build(model):
        guide = make(model)
        guide(*data())
        return guide

    return build


def mcmc(model):
    model.eval().requires_grad_(False)
    run = MCMC(NUTS(model, max_tree_depth=2), 5, 2, disable_progbar=True)
    run.run(*data(50))
    return run


class Own:
    """A posterior of one's own is whatever has the method."""

    def draw(self, model, num_samples, *, data=None, seed=None):
        ones = torch.ones(num_samples, model.space.num_channels)
        return Draws(0.1 * ones, ones)


POSTERIORS = {
    **{case: lambda model, case=case: make_guide(case, model) for case in CASES},
    "bank": make_bank,
    "draws": lambda model: Draws(torch.randn(8, 10), torch.rand(8, 10) + 0.5, num_chains=2),
    "nuts": lambda model: pn.run_nuts(
        model, data(model.num_data), 4, 2, 1, max_tree_depth=2, progress=False
    ),
    "mcmc": mcmc,
    "ensemble": lambda model: pn.Ensemble(
        [(model, pn.guides.Point(model)), (model, make_guide("MeanField", model))]
    ),
    "function": function,
    "AutoNormal": trained(AutoNormal),
    "AutoDelta": trained(AutoDelta),
    "AutoMultivariateNormal": trained(AutoMultivariateNormal),
    "own": lambda model: Own(),
}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_every_kind_predicts_is_judged_and_exported(kind):
    model = make_model(prior=Standard(0.3, 0.3))
    posterior = POSTERIORS[kind](model)
    x, y = data(7)
    model.requires_grad_(True)
    members = 2 if kind == "ensemble" else 1
    before = torch.get_rng_state()
    found = pn.predict(model, posterior, x, 4, seed=3)
    assert found.samples.shape == (4 * members, 7, 3)
    again = pn.predict(model, posterior, (x, y), 4, seed=3, batch_size=3)
    torch.testing.assert_close(found.mean, again.mean, rtol=1e-4, atol=1e-6)
    expected = -found.mean.gather(1, y[:, None]).log().mean().item()
    assert predictive_nll(model, posterior, (x, y), 4, seed=3) == pytest.approx(expected, rel=1e-4)
    assert pn.evaluate(model, posterior, (x, y), 4, seed=3)["nll"] == pytest.approx(
        expected, rel=1e-4
    )
    density = log_likelihoods(model, posterior, (x, y), 4, seed=3)
    assert density.shape == (4 * members, 7)
    idata = pn.to_arviz(model, posterior, (x, y), 4, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    values = idata["log_likelihood"]["y"].values
    assert values.size == 4 * members * 7
    # to_arviz draws under the same seed, so it is the same posterior sample
    np.testing.assert_allclose(values.reshape(-1, 7), density.numpy(), rtol=1e-3, atol=1e-5)
    if kind == "MeanField":
        az.summary(idata, var_names=["shift"])
    draws = as_posterior(posterior, "test", model).draw(model, 4, seed=3)
    assert draws.shift.dtype == model.network.like.dtype
    assert isinstance(draws, Draws)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_a_seed_repeats_and_leaves_the_generator(kind):
    model = make_model(prior=Standard(0.3, 0.3))
    posterior = as_posterior(POSTERIORS[kind](model), "test", model)
    assert isinstance(posterior, Posterior)
    before = torch.get_rng_state()
    first, second = (posterior.draw(model, 4, seed=9) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.shift, second.shift)
    generator = torch.Generator().manual_seed(1)
    posterior.draw(model, 4, seed=generator)
    assert torch.equal(before, torch.get_rng_state())


def test_all_stored_draws_are_the_default():
    model = make_model()
    draws = Draws(torch.randn(40, 10), torch.rand(40, 10) + 0.5)
    assert len(pn.predict(model, draws, data()[0]).samples) == 40
    assert len(pn.predict(model, make_bank(model, rows=30), data()[0]).samples) == 30
    assert len(pn.predict(model, make_guide("MeanField", model), data()[0]).samples) == 32


CALLS = {
    "predict": lambda model, wrong: pn.predict(model, wrong, data()[0]),
    "evaluate": lambda model, wrong: pn.evaluate(model, wrong, data()),
    "to_arviz": lambda model, wrong: pn.to_arviz(model, wrong, data()),
    "log_likelihoods": lambda model, wrong: log_likelihoods(model, wrong, data()),
    "predict_dropout": lambda model, wrong: pn.baselines.predict_dropout(
        dropout(), data()[0], posterior=wrong
    ),
    "Ensemble": lambda model, wrong: pn.Ensemble([(model, wrong)]),
    "predictive_nll": lambda model, wrong: predictive_nll(model, wrong, data()),
    "refresh_draws": lambda model, wrong: refresh_draws(model, wrong, data()[0]),
    "simulation_based_calibration": lambda model, wrong: simulation_based_calibration(
        pn.NormalizationModel(model.network, model.likelihood, 9, Standard()),
        data()[0],
        lambda x, y: wrong,
        1,
        3,
    ),
    "calibrate": lambda model, wrong: calibrate(
        model, data(), candidates={"wrong": wrong}, num_samples=2, num_folds=2
    ),
    "save": lambda model, wrong: pn.save("nowhere", model, wrong),
}
WRONG = {
    "class": pn.guides.MeanField,
    "string": "MeanField",
    "none": 3,
    "network": nn.Linear(5, 3),
    "list": [1, 2],
    "dictionary": {"shift": torch.zeros(10)},
    "tensor": torch.zeros(4, 10),
    "function": lambda: None,
    "prior": Standard(),
    "law": Independent(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
    ),
    "likelihood": pn.likelihoods.Categorical(),
}


def dropout():
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(20, 5))
    return pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=20)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS)
def test_everything_else_is_refused_by_name(call, wrong):
    with pytest.raises(OptionError, match=rf"{call}.*: expected a posterior") as error:
        CALLS[call](make_model(), WRONG[wrong])
    if wrong == "class":
        assert "Make one of it first: MeanField(...)" in str(error.value)
    else:
        assert "StatisticsBank, Draws" in str(error.value)
    assert ("PyroGuide(function)" in str(error.value)) == (wrong == "function")


EXPORTED = {
    "pareto_k": diagnostics.pareto_k,
    "importance_summary": diagnostics.importance_summary,
    "loo": diagnostics.loo,
    "compare_restarts": lambda wrong: diagnostics.compare_restarts([wrong, wrong]),
}
BANKS = {
    "MonteCarloBatchNorm": pn.guides.MonteCarloBatchNorm,
    "StochasticBatchNorm": pn.guides.StochasticBatchNorm,
    "LowRank.from_bank": pn.guides.LowRank.from_bank,
    "Paired.from_bank": pn.guides.Paired.from_bank,
    "EffectiveBatchSize.from_bank": pn.guides.EffectiveBatchSize.from_bank,
    "PopulationStatistics.from_bank": lambda m, b: pn.guides.PopulationStatistics.from_bank(
        m, b, 9
    ),
    "moment_batch_sizes": lambda m, b: diagnostics.moment_batch_sizes(b),
    "noise_law_test": lambda m, b: diagnostics.noise_law_test(b),
}


@pytest.mark.parametrize("wrong", [None, "list", "tensor", "class", "prior", "guide", "prediction"])
@pytest.mark.parametrize("call", [*EXPORTED, *BANKS, "latent_vectors", "join"])
def test_what_asks_for_one_kind_says_how_to_make_it(unchecked, call, wrong):
    model = make_model()
    guide = pn.guides.MeanField(model)
    others = {"guide": guide, "prediction": pn.predict(model, guide, data()[0], 2)}
    value = others.get(wrong, WRONG.get(wrong))
    if call in EXPORTED:
        with pytest.raises(OptionError, match=rf"{call}: expected ArviZ data.*pyronorm.to_arviz"):
            EXPORTED[call](value)
    elif call in BANKS:
        with pytest.raises(OptionError, match=f"{call}: bank must be a StatisticsBank, such as"):
            BANKS[call](model, value)
    else:
        run = diagnostics.latent_vectors if call == "latent_vectors" else lambda x: Draws.join([x])
        with pytest.raises(OptionError, match=r"a Draws, such as posterior.draw\(model, 1000"):
            run(value)


def test_a_network_that_samples_itself_is_refused():
    """Its own sites would be drawn from their prior, whatever the guide learned."""

    class Last(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](6, 3)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 6]).to_event(2))

        def forward(self, x):
            return self.linear(x)

    network = pn.convert(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), Last()))
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=9)
    with pytest.raises(OptionError, match=r"samples \['linear.weight'\].*no values"):
        pn.predict(model, pn.guides.Point(model), data()[0])


def test_a_guide_with_other_sites_is_refused():
    def guide(x):
        pyro.sample("shift", dist.Normal(torch.zeros(10), 0.1).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(10), 0.1).to_event(1))
        pyro.sample("weight", dist.Normal(0.0, 1.0))

    with pytest.raises(OptionError, match=r"values for \['weight'\], which the network does not"):
        pn.predict(make_model(), pn.PyroGuide(guide), data()[0])


def test_lists_of_guides_and_easy_guides():
    model = make_model(prior=Standard(0.3, 0.3))
    both = AutoGuideList(model)
    both.append(AutoNormal(pyro.poutine.block(model, expose=["shift"])))
    both.append(AutoDelta(pyro.poutine.block(model, expose=["scale"])))
    both(*data())
    assert pn.predict(model, both, data()[0], 3).samples.shape == (3, 9, 3)
    assert (as_posterior(both, "test").draw(model, 3).log_density) is None
