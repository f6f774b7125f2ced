from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import Normal, StudentT

import pyronorm as pn
from pyronorm.errors import DataError, OptionError
from pyronorm.infer import PredictiveDensity
from tests.guides.cases import make_model

STD = 0.2


class First(nn.Module):
    def forward(self, x):
        return x[:, 0]


def shifted(size):
    """The output is scale * shift, a Student t of n - 1 degrees of freedom over sqrt(n - 1)."""
    network = pn.convert(nn.Sequential(nn.BatchNorm1d(1, affine=False), First())).eval()
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, pn.likelihoods.Normal(STD), size)
    y = (STD**2 + 1 / 9) ** 0.5 * torch.randn(size)
    return model, (torch.zeros(size, 1), y)


def best_batch_size(y):
    """By quadrature over the output, and on a grid of n."""
    z = torch.linspace(-8, 8, 2001)
    sizes = torch.arange(4, 40, 0.25)

    def log_density(n):
        scale = 1 / math.sqrt(n - 1)
        prior = StudentT(n - 1.0, 0.0, scale).log_prob(z) + math.log(float(z[1] - z[0]))
        return (prior + Normal(z, STD).log_prob(y[:, None])).logsumexp(1).mean()

    return float(sizes[torch.stack([log_density(float(n)) for n in sizes]).argmax()])


def test_the_best_noise_is_found():
    model, (x, y) = shifted(300)
    expected = best_batch_size(y)
    assert 7 < expected < 20
    guide = pn.learn_noise(
        model, (x, y), "network", start=40.0, num_draws=128, epochs=50, batch_size=300, lr=0.15
    )
    assert guide.batch_size.item() == pytest.approx(expected, rel=0.15)


def test_the_loss_by_hand():
    model = make_model().eval()
    guide = pn.guides.EffectiveBatchSize(model, 16.0)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    for number in (1, 4):
        torch.manual_seed(3)
        loss = PredictiveDensity(number).differentiable_loss(model, guide, x, y)
        torch.manual_seed(3)
        with torch.no_grad(), plates(number):
            sites = poutine.trace(guide).get_trace(x, y).nodes
        shift, scale = (sites[name]["value"].reshape(number, 1, -1) for name in ("shift", "scale"))
        logits = model.network(x, shift, scale).log_softmax(-1)
        log_p = logits[:, range(9), y].logsumexp(0) - math.log(number)
        torch.testing.assert_close(loss, -50 / 9 * log_p.sum())
        (gradient,) = torch.autograd.grad(loss, list(guide.parameters()))
        assert bool(gradient.isfinite().all())


def plates(number):
    return pyro.plate_stack("draws", (number, 1, 1) if number > 1 else ())


def test_it_goes_with_draws_of_the_model():
    model = make_model(draws=3)
    guide = pn.guides.EffectiveBatchSize(model, 16.0)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    model.training = guide.training = True
    loss = PredictiveDensity(4).differentiable_loss(model, guide, x, y)
    assert bool(loss.isfinite())


def test_what_cannot_be_is_refused():
    model = make_model()
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    with pytest.raises(DataError, match="learn_noise: takes pairs"):
        pn.learn_noise(model, (x, y, torch.ones(9)))
    with pytest.raises(OptionError, match="takes pairs"):
        PredictiveDensity(2).differentiable_loss(
            model, pn.guides.MeanField(model), x, y, torch.ones(9)
        )
