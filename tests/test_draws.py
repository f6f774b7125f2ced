"""Several draws per mini-batch: the same ELBO, and less variance where it matters."""

from __future__ import annotations

import copy

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyronorm import NormalizationModel, convert, datasets, fit, guides, networks, trust_statistics
from pyronorm.errors import OptionError
from pyronorm.infer.elbo import default_elbo
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import Group
from pyronorm.priors import BatchNoise, Standard
from tests.nets import mlp

GUIDES = {
    "BatchNoise": lambda m: guides.BatchNoise(m, 16.0),
    "MeanField": lambda m: guides.MeanField(m, init_std=0.25),
    "LowRank": lambda m: guides.LowRank(m, rank=2, init_std=0.25),
}


def gradients(model, guide, x, y, repeats, elbo=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradients for one batch, many times."""
    elbo = default_elbo(guide) if elbo is None else elbo
    wanted = [*guide.parameters(), *model.parameters()]
    losses, rows = [], []
    for _ in range(repeats):
        loss = elbo.differentiable_loss(model, guide, x, y)
        losses.append(loss.detach())
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]))
    return torch.stack(losses), torch.stack(rows)


@pytest.mark.parametrize("draws", [3, 16])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_loss_and_gradient_are_unbiased(draws, guide, elbo):
    network = convert(mlp(norm=lambda c: nn.GroupNorm(1, c)))
    x, y = torch.randn(16, 5), torch.randint(3, (16,))
    model = NormalizationModel(network, Categorical(), 200, Standard(0.5, 0.5))
    posterior = GUIDES[guide](model)
    repeats = 300
    loss_1, gradient_1 = gradients(model, posterior, x, y, repeats, elbo())
    model.draws = draws
    loss_k, gradient_k = gradients(model, posterior, x, y, repeats, elbo())
    # 4.5 standard errors: 7e-6 each, 1.5 % over 12 losses and some 2,000 gradient components
    error = ((loss_1.var() + loss_k.var()) / repeats).sqrt()
    assert abs(loss_1.mean() - loss_k.mean()) < 4.5 * error
    errors = ((gradient_1.var(0) + gradient_k.var(0)) / repeats).sqrt() + 1e-6
    assert ((gradient_1.mean(0) - gradient_k.mean(0)).abs() < 4.5 * errors).all()


@pytest.fixture(scope="module")
def trained():
    """A group-normalized network after a few epochs on digits."""
    torch.manual_seed(0)
    data = datasets.load("digits")
    network = convert(networks.SmallConvNet(width=8), Group(4))
    model = NormalizationModel(network, Categorical(), len(data.train.y), BatchNoise(16))
    fit(model, guides.BatchNoise(model, 16), tuple(data.train), epochs=3, lr=5e-3, progress=False)
    return model, data.train.x[:32], data.train.y[:32]


@pytest.mark.parametrize("guide", GUIDES)
def test_gradient_variance_is_lower(trained, guide):
    model, x, y = trained
    model = copy.deepcopy(model)
    posterior = GUIDES[guide](model)
    variance = {}
    for draws in (1, 4, 32):
        model.draws = draws
        variance[draws] = gradients(model, posterior, x, y, 60)[1].var(0).sum().item()
    four, each = variance[4] / variance[1], variance[32] / variance[1]
    print(f"{guide}: {four:.2f} of one draw's gradient variance with 4 draws, {each:.2f} with 32")
    assert four < 0.8
    assert each < 0.5


def test_batch_statistics_would_mix_draws_and_are_refused():
    model = NormalizationModel(convert(mlp()), Categorical(), 100, draws=4)
    guide = guides.MeanField(model)
    x, y = torch.randn(16, 5), torch.randint(3, (16,))
    with pytest.raises(OptionError, match="draws=4, but 1 takes statistics over the batch"):
        Trace_ELBO().differentiable_loss(model, guide, x, y)
    trust_statistics(model)
    model.network.eval()  # a frozen network has no batch statistics
    assert torch.isfinite(Trace_ELBO().differentiable_loss(model, guide, x, y))
