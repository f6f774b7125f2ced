from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyronorm import LatentNetwork, NormalizationModel, convert, init_to_neutral, sample_latents
from pyronorm.errors import ConversionError, DataError, OptionError, ShapeError
from pyronorm.guides import MeanField
from pyronorm.likelihoods import Bernoulli, Categorical, Normal
from pyronorm.normalizers import Group, LatentNorm
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.nets import SHAPES, conv_net, mlp, train_briefly
from tests.priors.laws import pair

NUM_DATA = 70


def make(likelihood=None, prior=None, draws=1, network=None) -> NormalizationModel:
    network = mlp(norm=lambda c: nn.GroupNorm(2, c)) if network is None else network
    likelihood = Categorical() if likelihood is None else likelihood
    return NormalizationModel(convert(network), likelihood, NUM_DATA, prior, draws)


def data(n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 5), torch.randint(3, (n,))


def test_log_density_is_prior_plus_scaled_likelihood():
    model = make(prior=BatchNoise(8.0))
    x, y = data()
    c = model.space.num_channels
    shift, scale = torch.randn(c) * 0.3, torch.rand(c) + 0.5
    values = {"shift": shift, "scale": scale}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y)
    prior = pair(BatchNoise(8.0), c, torch.empty(0))
    logits = model.network(x, shift, scale)
    likelihood = -nn.functional.cross_entropy(logits, y, reduction="sum")
    expected = prior[0].log_prob(shift) + prior[1].log_prob(scale) + NUM_DATA / len(x) * likelihood
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_sites_have_the_stated_names_and_shapes():
    x, y = data()
    trace = poutine.trace(make()).get_trace(x, y)
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    assert set(sites) == {"shift", "scale", "data", "y"} - {"data"} | (set(sites) & {"data"})
    assert sites["shift"]["value"].shape == sites["scale"]["value"].shape == (10,)
    assert sites["y"]["is_observed"]
    assert sites["y"]["fn"].batch_shape == (7,)


def test_without_data_it_samples_them():
    model = make()
    x, _ = data()
    y = model(x)
    assert y.shape == (7,)
    assert set(y.tolist()) <= {0, 1, 2}


def test_the_default_prior_is_the_noise_of_statistics_of_all_data():
    assert make().prior == BatchNoise(NUM_DATA)
    one = NormalizationModel(convert(mlp()), Categorical(), 1)  # one value has no variance
    assert one.prior == BatchNoise(2)


def test_several_networks_with_prefixes_in_a_model_of_ones_own():
    encoder = LatentNetwork(convert(mlp(5, 6, 2)), prefix="encoder.")
    decoder = LatentNetwork(convert(mlp(2, 6, 5)), prefix="decoder.")

    def model(x):
        z = encoder(x, *sample_latents(encoder, BatchNoise(16)))
        mean = decoder(z, *sample_latents(decoder, Standard()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    trace = poutine.trace(model).get_trace(torch.randn(7, 5))
    names = [n for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data"]
    assert names == ["encoder.shift", "encoder.scale", "decoder.shift", "decoder.scale", "x"]
    assert torch.isfinite(trace.log_prob_sum())


def test_dense_outputs_have_one_log_likelihood_per_example():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    x = torch.randn(6, 2, 4, 5)
    for likelihood, y in (
        (Categorical(), torch.randint(3, (6, 4, 5))),
        (Bernoulli(), torch.randint(2, (6, 3, 4, 5)).float()),
        (Normal(0.5), torch.randn(6, 3, 4, 5)),
    ):
        trace = poutine.trace(make(likelihood, network=network)).get_trace(x, y)
        trace.compute_log_prob()
        assert trace.nodes["y"]["log_prob"].shape == (6,)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("draws", [1, 3])
def test_vectorized_particles_equal_a_loop_in_expectation(particles, draws):
    # With latents that do not vary the ELBO is deterministic, whatever the particles.
    model = make(prior=Standard(), draws=draws)
    guide = MeanField(model, init_std=1e-6)
    x, y = data(8)
    loop = Trace_ELBO(num_particles=1).loss(model, guide, x, y)
    together = Trace_ELBO(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1 + (draws > 1)
    ).loss(model, guide, x, y)
    assert together == pytest.approx(loop, rel=0.02)


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_draws_split_the_batch_in_order(batch):
    model = make(prior=Standard(), draws=3)
    x, y = data(batch)
    c = model.space.num_channels
    shift, scale = torch.randn(3, 1, c) * 0.3, torch.rand(3, 1, c) + 0.5
    values = {"shift": shift, "scale": scale}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y)
    trace.compute_log_prob()
    part = torch.arange(batch) * 3 // batch
    expected = torch.stack(
        [
            -nn.functional.cross_entropy(
                model.network(x[i : i + 1], shift[k, 0], scale[k, 0]), y[i : i + 1]
            )
            for i, k in enumerate(part.tolist())
        ]
    )
    torch.testing.assert_close(trace.nodes["y"]["unscaled_log_prob"], expected)
    # each draw carries a third of the KL divergence
    prior = pair(Standard(), c, torch.empty(0))
    log_prior = (prior[0].log_prob(shift) + prior[1].log_prob(scale)).sum() / 3
    sites = trace.nodes["shift"]["log_prob_sum"] + trace.nodes["scale"]["log_prob_sum"]
    torch.testing.assert_close(sites, log_prior)


def test_in_evaluation_mode_there_is_one_draw():
    model = make(draws=3).eval()
    x, y = data()
    trace = poutine.trace(model).get_trace(x, y)
    assert trace.nodes["shift"]["value"].shape == (10,)
    assert model.num_draws == 1


def test_autoguides_are_refused_with_several_draws():
    model = make(draws=3)
    x, y = data()
    with pytest.raises(
        OptionError, match="draws=3: Pyro's autoguides and MCMC would take each draw"
    ):
        AutoNormal(model)(x, y)
    AutoNormal(model.eval())(x, y)


def test_predictive_in_parallel_equals_one_after_the_other():
    model = make(Normal(1e-4), network=mlp(norm=lambda c: nn.GroupNorm(2, c))).eval()
    x, c = torch.randn(7, 5), model.space.num_channels
    for samples in (7, 4):  # as many draws as examples must not be taken for draws per example
        values = {"shift": torch.randn(samples, c) * 0.3, "scale": torch.rand(samples, c) + 0.5}
        loop = Predictive(model, values)(x)["y"]
        parallel = Predictive(model, values, parallel=True)(x)["y"]
        assert loop.shape == parallel.shape == (samples, 7, 3)
        torch.testing.assert_close(parallel, loop, atol=2e-3, rtol=0)


def test_likelihood_is_computed_in_float32_after_autocast():
    model = make()
    x, y = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = poutine.trace(model).get_trace(x, y)
    assert trace.nodes["y"]["fn"].logits.dtype == torch.float32


def test_bad_data_are_refused():
    model = make()
    x, y = data()
    with pytest.raises(ShapeError, match=r"y of shape \(7,\), got y of shape \(7, 1\)"):
        model(x, y[:, None])
    with pytest.raises(DataError, match="range from 0 to 3"):
        model(x, torch.tensor([0, 1, 2, 3, 0, 0, 0]))


def test_bad_options_are_refused(unchecked):
    network = convert(mlp())
    for bad in (0, 5.0, math.nan, "5", None, True, torch.ones(1, 3), torch.tensor(5.0)):
        for name, options in (("num_data", (bad,)), ("draws", (5, None, bad))):
            with pytest.raises(OptionError, match=f"{name} must be at least 1, an integer, got"):
                NormalizationModel(network, Categorical(), *options)
    assert NormalizationModel(network, Categorical(), torch.tensor(5)).num_data == 5
    with pytest.raises(ConversionError, match="convert it first"):
        NormalizationModel(mlp(), Categorical(), 5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Categorical, "the class Categorical"),
        (Standard, "the class Standard"),
        ("categorical", "str"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (dist.Normal(0, 1), "Normal"),
    ],
)
def test_what_is_no_likelihood_or_prior_is_refused(wrong, named, unchecked):
    network = convert(mlp())
    with pytest.raises(OptionError, match=f"likelihood must be a Likelihood, .*, got {named}"):
        NormalizationModel(network, wrong, 5)
    with pytest.raises(OptionError, match=f"prior must be a Prior, .*, got {named}"):
        NormalizationModel(network, Categorical(), 5, wrong)
    with pytest.raises(OptionError, match=f"sample_latents: prior must be a Prior, .* {named}"):
        sample_latents(LatentNetwork(network), wrong)


@pytest.mark.parametrize("prior", [Standard(), BatchNoise(8), ScaleInvariant()])
def test_autoguides_start_at_the_neutral_latents(prior):
    model = make(prior=prior)
    guide = AutoNormal(model, init_loc_fn=init_to_neutral, init_scale=1e-8)
    values = guide(*data())
    torch.testing.assert_close(values["shift"], torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(values["scale"], torch.ones(10))


def test_improper_priors_cannot_start_from_a_draw():
    with pytest.raises(OptionError, match="init_loc_fn=pyronorm.init_to_neutral"):
        AutoNormal(make(prior=ScaleInvariant()))(*data())


def test_a_converted_layer_alone_is_a_network():
    layer = LatentNorm(Group(1), 4)
    model = NormalizationModel(layer, Normal(), 10)
    assert model.space.names == ("LatentNorm",)
    assert model(torch.randn(3, 4)).shape == (3, 4)


def test_convolutional_batch_network_end_to_end():
    original = train_briefly(conv_net(2), SHAPES[2], steps=2)
    model = NormalizationModel(convert(original), Categorical(), NUM_DATA)
    x, y = torch.randn(6, *SHAPES[2]), torch.randint(3, (6,))
    loss = Trace_ELBO().differentiable_loss(model, MeanField(model), x, y)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_repr_shows_what_is_no_module():
    model = NormalizationModel(convert(mlp()), Categorical(), 7, Standard(0.3, 0.2), draws=2)
    prior = "Standard(shift_std=0.3, log_scale_std=0.2)"
    assert f"num_data=7, prior={prior}, draws=2" in repr(model)
