"""Everything of Pyro works on the model unchanged: a grid of normalizers and engines."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn

from pyronorm import (
    LatentNetwork,
    NormalizationModel,
    convert,
    guides,
    init_to_neutral,
    sample_latents,
)
from pyronorm.errors import NoDensityError, OptionError
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import Analytic, Batch, Group, Instance, Layer, Population, Weight
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import make_bank
from tests.nets import SHAPES, conv_net, mlp, train_briefly
from tests.priors.laws import pair

NORMALIZERS = [Batch(), Population(), Group(2), Layer(), Instance(), Weight(), Analytic()]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, *SHAPES[1])
    return x, (x.mean((1, 2)) > 0).long()


def make(normalizer, frozen=False) -> NormalizationModel:
    original = train_briefly(conv_net(1, outputs=2), SHAPES[1], steps=2)
    network = convert(original, normalizer, example_input=torch.randn(2, *SHAPES[1]))
    network.requires_grad_(not frozen)
    model = NormalizationModel(network, Categorical(), 12, prior=BatchNoise(16))
    return model.train(not frozen)


def train_svi(model, guide, elbo, steps=60):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    x, y = data()
    losses = [svi.step(x, y) for _ in range(steps)]
    assert sum(losses[-10:]) < sum(losses[:10])


def train_elbo_module(model, guide, elbo, steps=60):
    x, y = data()
    module = elbo(model, guide)
    module(x, y)  # an autoguide makes its parameters
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])


def run_nuts(model):
    kernel = NUTS(model, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data())
    samples = mcmc.get_samples()
    assert samples["shift"].shape == samples["scale"].shape == (5, 10)
    assert (samples["scale"] > 0).all()
    assert samples["shift"].std(0).min() > 0


def run_predictive(model):
    x, _ = data()
    for parallel in (False, True):
        samples = Predictive(model, guide=guides.MeanField(model), num_samples=4, parallel=parallel)
        values = samples(x)
        assert values["y"].shape == (4, 12)


def run_condition(model):
    x, y = data()
    values = {"shift": torch.randn(10) * 0.1, "scale": torch.rand(10) + 0.5}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y)
    assert torch.equal(trace.nodes["shift"]["value"], values["shift"])
    logits = model.network(x, values["shift"], values["scale"])
    torch.testing.assert_close(
        trace.nodes["y"]["fn"].logits, logits.log_softmax(-1), rtol=1e-4, atol=1e-5
    )


ENGINES = {
    "SVI Trace_ELBO": (False, lambda m: train_svi(m, guides.MeanField(m), Trace_ELBO())),
    "SVI TraceMeanField_ELBO": (
        False,
        lambda m: train_svi(m, guides.MeanField(m), TraceMeanField_ELBO()),
    ),
    "SVI TraceGraph_ELBO": (False, lambda m: train_svi(m, guides.LowRank(m, 2), TraceGraph_ELBO())),
    "SVI vectorized particles": (
        False,
        lambda m: train_svi(
            m,
            guides.MeanField(m),
            Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
            steps=30,
        ),
    ),
    "ELBOModule": (False, lambda m: train_elbo_module(m, guides.MeanField(m), Trace_ELBO())),
    "AutoNormal": (False, lambda m: train_svi(m, AutoNormal(m), Trace_ELBO())),
    "AutoNormal ELBOModule": (
        False,
        lambda m: train_elbo_module(m, AutoNormal(m), TraceMeanField_ELBO()),
    ),
    "AutoDiagonalNormal": (False, lambda m: train_svi(m, AutoDiagonalNormal(m), Trace_ELBO())),
    "AutoMultivariateNormal": (
        False,
        lambda m: train_svi(m, AutoMultivariateNormal(m), Trace_ELBO()),
    ),
    "AutoLowRankMultivariateNormal": (
        False,
        lambda m: train_svi(m, AutoLowRankMultivariateNormal(m, rank=2), Trace_ELBO()),
    ),
    "AutoDelta": (False, lambda m: train_svi(m, AutoDelta(m), Trace_ELBO())),
    "NUTS": (True, run_nuts),
    "Predictive": (True, run_predictive),
    "Predictive in training mode": (False, run_predictive),
    "poutine.condition": (True, run_condition),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("engine", ENGINES)
def test_ok(engine, normalizer):
    frozen, run = ENGINES[engine]
    run(make(normalizer, frozen))


def improper(model):
    return NormalizationModel(
        model.network, model.likelihood, model.num_data, ScaleInvariant()
    ).train(model.training)


def several(model):
    model.draws = 4
    return model.train()


ERRORS = {
    "bank in an ELBO": (
        lambda m: train_svi(m, guides.MonteCarloBatchNorm(m, make_bank(m)), Trace_ELBO()),
        NoDensityError,
        "has no density",
    ),
    "improper prior, autoguide from a draw": (
        lambda m: train_svi(m := improper(m), AutoNormal(m), Trace_ELBO()),
        OptionError,
        "init_loc_fn",
    ),
    "improper prior, NUTS from a draw": (
        lambda m: run_nuts(improper(m)),
        OptionError,
        "pyronorm.run_nuts",
    ),
    "several draws, autoguide": (
        lambda m: train_svi(several(m), AutoNormal(m), Trace_ELBO()),
        OptionError,
        "draws=4",
    ),
    "several draws, NUTS": (lambda m: run_nuts(several(m)), OptionError, "draws=4"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case):
    run, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        run(make(Batch()))


def test_improper_prior_trains_from_the_neutral_latents():
    model = improper(make(Group(2)))
    train_svi(model, AutoNormal(model, init_loc_fn=init_to_neutral), Trace_ELBO())


def test_another_models_parameters_in_the_store_are_refused():
    # Pyro's store is global: SVI would go on training the first model's parameters.
    x, y = data()
    for number in range(2):
        model = make(Group(2))
        svi = SVI(model, guides.MeanField(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        if number == 0:
            svi.step(x, y)
    with pytest.raises(
        OptionError, match=r"holds 'network\.0\.weight' of another model.*clear_param"
    ):
        svi.step(x, y)
    Trace_ELBO()(model, guides.MeanField(model))(x, y)  # ELBOModule does not use the store
    pyro.clear_param_store()
    svi.step(x, y)


def small(prior) -> tuple[NormalizationModel, guides.MeanField]:
    model = NormalizationModel(
        convert(mlp(norm=lambda c: nn.GroupNorm(2, c))), Categorical(), 40, prior
    )
    guide = guides.MeanField(model, init_std=0.3)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, guide


def parameters(model, guide) -> list[nn.Parameter]:
    return [*model.parameters(), *guide.parameters()]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_and_elbo_module_give_the_same_loss_and_gradient(elbo):
    model, guide = small(Standard())
    x, y = torch.randn(10, 5), torch.randint(3, (10,))
    torch.manual_seed(5)
    loss = elbo()(model, guide)(x, y)
    gradients = torch.autograd.grad(loss, parameters(model, guide))
    torch.manual_seed(5)
    svi_loss = elbo().loss_and_grads(model, guide, x, y)
    assert svi_loss == pytest.approx(loss.item(), rel=1e-6)
    for parameter, gradient in zip(parameters(model, guide), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("prior", [Standard(0.7, 0.4), BatchNoise(9.0)])
def test_elbo_and_gradient_equal_a_hand_written_estimate_draw_by_draw(prior):
    model, guide = small(prior)
    x, y = torch.randn(10, 5), torch.randint(3, (10,))
    c = model.space.num_channels
    torch.manual_seed(5)
    loss = Trace_ELBO()(model, guide)(x, y)
    gradients = torch.autograd.grad(loss, parameters(model, guide))

    torch.manual_seed(5)
    noise = [torch.normal(torch.zeros(c), torch.ones(c)) for _ in range(2)]
    shift = guide.shift_loc + guide.shift_log_std.exp() * noise[0]
    log_scale = guide.log_scale_loc + guide.log_scale_log_std.exp() * noise[1]
    logits = model.network(x, shift, log_scale.exp())
    log_q = (
        torch.distributions.Normal(guide.shift_loc, guide.shift_log_std.exp()).log_prob(shift)
        + torch.distributions.Normal(guide.log_scale_loc, guide.log_scale_log_std.exp()).log_prob(
            log_scale
        )
        - log_scale
    ).sum()
    p_shift, p_scale = pair(prior, c, torch.empty(0))
    log_p = p_shift.log_prob(shift) + p_scale.log_prob(log_scale.exp())
    data_term = -nn.functional.cross_entropy(logits, y, reduction="sum") * 40 / 10
    expected = -(data_term + log_p - log_q)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    brute = torch.autograd.grad(expected, parameters(model, guide))
    for ours, theirs in zip(gradients, brute, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_elbo_is_the_same_in_expectation_with_analytic_and_sampled_kl():
    model, guide = small(BatchNoise(9.0))
    x, y = torch.randn(10, 5), torch.randint(3, (10,))
    losses = {
        elbo: torch.tensor([elbo().loss(model, guide, x, y) for _ in range(400)])
        for elbo in (Trace_ELBO, TraceMeanField_ELBO)
    }
    a, b = losses.values()
    # 4 standard errors: a false alarm in 16,000 runs
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / 400).sqrt()


@pytest.mark.parametrize("name", ["AutoStructured", "AutoGaussian"])
def test_autoguides_that_track_dependencies_train(name):
    """They run the model on tensors that note where they come from."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    model = NormalizationModel(convert(network), Categorical(), num_data=32)
    guide = getattr(pyro.infer.autoguide, name)(model, init_loc_fn=init_to_neutral)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    x, y = torch.randn(32, 3), torch.randint(2, (32,))
    before = model.network.network[0].weight.clone()
    assert svi.step(x, y) > 0
    assert not torch.equal(model.network.network[0].weight, before)


def own(prefix: str = "") -> LatentNetwork:
    """The network of a Pyro model of one's own."""
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    return LatentNetwork(convert(body), prefix=prefix)


def regression(**networks: LatentNetwork):
    """A sum of networks, each with latents of its own."""

    def model(x, y):
        loc = 0.0
        for name, network in networks.items():
            pyro.module(name, network)
            loc = loc + network(x, *sample_latents(network, Standard(0.3, 0.3))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

    return model


def moved(modules, run) -> list[float]:
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    run()
    return [
        max(float((p.detach() - q).abs().max()) for p, q in zip(m.parameters(), old, strict=True))
        for m, old in zip(modules, before, strict=True)
    ]


def svi_steps(model, guide, elbo=None, steps=5):
    x = torch.randn(16, 3)
    y = x[:, 0]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo or Trace_ELBO())
    return [svi.step(x, y) for _ in range(steps)]


def test_a_pattern_that_runs_twice_is_refused_where_it_would_not_train():
    def once():
        network = own()
        guide = guides.MeanField(network)
        run = lambda: svi_steps(regression(network=network), guide)  # noqa: E731
        return moved([network, guide], run)

    assert min(once()) > 0.05
    with pytest.raises(OptionError, match=r"'network\$\$\$network.0.weight' of another network"):
        once()
    pyro.clear_param_store()
    assert min(once()) > 0.05


def test_a_list_of_guides_has_medians_and_quantiles_of_ours():
    model = make(Group(2))
    ours = guides.MeanField(model, 0.3)
    whole = AutoGuideList(model)
    whole.append(ours)
    x, y = data()
    assert whole(x, y).keys() == whole.median(x, y).keys() == {"shift", "scale"}
    torch.testing.assert_close(whole.median()["scale"], ours.median()["scale"])
    torch.testing.assert_close(whole.quantiles([0.1, 0.9]), ours.quantiles([0.1, 0.9]))


@pytest.mark.filterwarnings("ignore:pyro.module prior:UserWarning")
def test_parameters_that_handlers_sample_are_refused():
    model = make(Group(2))
    x, y = data()
    with pytest.raises(OptionError, match="poutine.lift would sample the network's parameters"):
        poutine.trace(poutine.lift(model, dist.Normal(0.0, 1.0))).get_trace(x, y)
    network = own()
    inner = regression(network=network)
    prior = {"network$$$network.3.bias": dist.Normal(torch.zeros(1), 1.0).to_event(1)}
    with pytest.raises(OptionError, match="PyroSample"):
        poutine.lift(inner, prior)(torch.randn(4, 3), torch.randn(4))
    poutine.lift(inner, {"other": dist.Normal(0.0, 1.0)})(torch.randn(4, 3), torch.randn(4))


@pytest.mark.parametrize(
    "elbo",
    [
        JitTrace_ELBO(),
        JitTrace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        TraceEnum_ELBO(max_plate_nesting=1),
        TraceEnum_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=["jit", "jit vectorized", "enum", "enum vectorized"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites:UserWarning")
def test_other_estimators(elbo):
    model = make(Group(2))
    train_svi(model, guides.MeanField(model, 0.1), elbo, steps=20)


def test_enumeration_beside_the_latents_sums_over_the_components():
    """Noise of two kinds, a hidden one for each example: the ELBO is that of the mixture."""
    network = own()
    std = torch.tensor([0.3, 2.0])
    weights = torch.tensor([0.7, 0.3])
    x, y = torch.randn(6, 3), torch.randn(6)

    def hidden(x, y):
        loc = network(x, *sample_latents(network, Standard())).squeeze(-1)
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc, std[kind]), obs=y)

    def summed(x, y):
        loc = network(x, *sample_latents(network, Standard())).squeeze(-1)
        with pyro.plate("data", len(x)):
            mixture = dist.MixtureSameFamily(
                dist.Categorical(weights.expand(6, 2)), dist.Normal(loc[:, None], std)
            )
            pyro.sample("y", mixture, obs=y)

    guide = guides.MeanField(network, 0.2)
    losses = []
    for model, elbo in ((hidden, TraceEnum_ELBO(max_plate_nesting=1)), (summed, Trace_ELBO())):
        torch.manual_seed(3)
        losses.append(elbo.loss(model, guide, x, y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_subsampled_plates_scale_the_data():
    network = own()
    x, y = torch.randn(12, 3), torch.randn(12)

    def model(size):
        shift, scale = sample_latents(network, Standard())
        with pyro.plate("data", 12, subsample=torch.arange(size)) as index:
            loc = network(x[index], shift, scale).squeeze(-1)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[index])

    network_values = poutine.trace(guides.MeanField(network)).get_trace()
    part = poutine.trace(poutine.replay(model, network_values)).get_trace(4)
    part.compute_log_prob()
    loc = part.nodes["y"]["fn"].loc
    expected = dist.Normal(loc, 1.0).log_prob(y[:4]).sum() * 3
    torch.testing.assert_close(part.nodes["y"]["log_prob_sum"], expected)
