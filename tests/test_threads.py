"""Several threads may predict with one model at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyronorm as pn
from pyronorm.normalizers import Analytic, Batch, Group
from tests.nets import SHAPES, conv_net, train_briefly

THREADS = 8


def build(normalizer) -> pn.NormalizationModel:
    original = train_briefly(conv_net(2), SHAPES[2], steps=2)
    network = pn.convert(original, normalizer, example_input=torch.randn(2, *SHAPES[2]))
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=100)


def posteriors(model: pn.NormalizationModel, count: int) -> list:
    guides = []
    for i in range(count):
        guide = (pn.guides.MeanField, pn.guides.LowRank, pn.guides.Paired)[i % 3](model)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        guides.append(guide)
    return guides


def in_threads(jobs: list, repeats: int) -> list[list]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda job: [job() for _ in range(repeats)], jobs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalizer", [Batch(), Group(2), Analytic()], ids=str)
def test_predictions_with_different_guides_on_one_model(normalizer, training):
    model = build(normalizer).train(training)
    x = torch.randn(4, *SHAPES[2])

    def predict(guide, seed):
        return pn.predict(model, guide, x, 6, seed=seed).mean

    jobs = [
        lambda guide=guide, seed=seed: predict(guide, seed)
        for seed, guide in enumerate(posteriors(model, THREADS))
    ]
    alone = [job() for job in jobs]
    for mine, expected in zip(in_threads(jobs, 10), alone, strict=True):
        assert all(torch.equal(value, expected) for value in mine)
    assert all(m.training is training for m in model.modules())


@pytest.mark.slow
def test_five_hundred_predictions_in_each_of_eight_threads():
    model = build(Batch())
    x = torch.randn(4, *SHAPES[2])
    jobs = [
        lambda g=g, s=s: pn.predict(model, g, x, 4, seed=s).mean
        for s, g in enumerate(posteriors(model, THREADS))
    ]
    alone = [job() for job in jobs]
    for mine, expected in zip(in_threads(jobs, 500), alone, strict=True):
        assert all(torch.equal(value, expected) for value in mine)


def test_latents_and_gradients_of_one_network_in_several_threads():
    network = build(Analytic()).network
    x = torch.randn(4, *SHAPES[2])
    latents = [
        torch.stack([torch.randn(n), torch.rand(n) + 0.5]).requires_grad_()
        for n in [network.space.num_channels] * THREADS
    ]

    def gradient(pair):
        return torch.autograd.grad(network(x, *pair).square().sum(), pair)[0]

    jobs = [lambda pair=pair: gradient(pair) for pair in latents]
    alone = [job() for job in jobs]
    for mine, expected in zip(in_threads(jobs, 10), alone, strict=True):
        assert all(torch.equal(value, expected) for value in mine)


def test_pyro_guides_take_turns():
    model = build(Group(2))
    x, y = torch.randn(8, *SHAPES[2]), torch.randint(3, (8,))

    def own(*_):
        channels = model.space.num_channels
        pyro.sample("shift", dist.Normal(torch.zeros(channels), 1.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(channels), 0.3).to_event(1))

    guides = [pn.PyroGuide(own), pn.guides.MeanField(model)] * (THREADS // 2)
    jobs = [
        lambda g=g, s=s: pn.predict(model, g, (x, y), 4, seed=s).mean for s, g in enumerate(guides)
    ]
    alone = [job() for job in jobs]
    for mine, expected in zip(in_threads(jobs, 5), alone, strict=True):
        assert all(torch.equal(value, expected) for value in mine)
