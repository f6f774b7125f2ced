"""ELBO and gradients of every learned guide against its sites written out by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineAutoregressive
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import transforms

from pyronorm.distributions import InverseChi
from pyronorm.priors import BatchNoise, Standard
from tests.guides.cases import make_guide, make_model


def two(shift, scale):
    shift = pyro.sample("shift", shift.to_event(1))
    pyro.sample("scale", (scale if hasattr(scale, "log_prob") else scale(shift)).to_event(1))


def batch_noise(df):
    std = torch.rsqrt(1 + df)
    two(dist.Normal(torch.zeros_like(df), std), InverseChi(df, 1 / std))


def mean_field(g):
    shift = dist.Normal(g.shift_loc, g.shift_log_std.exp())
    two(shift, dist.LogNormal(g.log_scale_loc, g.log_scale_log_std.exp()))


def paired(g):
    std = g.shift_log_std.exp()

    def scale(shift):
        loc = g.log_scale_loc + g.coupling * (shift - g.shift_loc) / std
        return dist.LogNormal(loc, g.log_scale_log_std.exp())

    two(dist.Normal(g.shift_loc, std), scale)


def joint(base, parts):
    split = transforms.CatTransform(
        [transforms.identity_transform, transforms.ExpTransform()],
        dim=-1,
        lengths=[10, 10],
        cache_size=1,
    )
    law = dist.TransformedDistribution(base, [*parts, split])
    latents = pyro.sample("latents", law, infer={"is_auxiliary": True})
    for site, value in zip(("shift", "scale"), latents.chunk(2, -1), strict=True):
        pyro.sample(site, dist.Delta(value, event_dim=1))


def low_rank(g):
    joint(dist.LowRankMultivariateNormal(g.loc, g.factor, (2 * g.log_std).exp()), [])


def flow(g):
    affine = transforms.AffineTransform(g.loc, g.log_std.exp(), event_dim=1, cache_size=1)
    base = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    joint(base, [*(AffineAutoregressive(network) for network in g.flows), affine])


BY_HAND = {
    "MeanField": mean_field,
    "Paired.from_bank": paired,
    "LowRank.from_bank": low_rank,
    "Flow": flow,
    "EffectiveBatchSize": lambda g: batch_noise(g.log_df.exp()[g.groups]),
    "BatchNoise": lambda g: batch_noise(torch.full((10,), 15.0)),
    "Fixed": lambda g: two(
        dist.Normal(torch.zeros(10), 0.3), dist.LogNormal(torch.zeros(10), torch.full((10,), 0.2))
    ),
}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("prior", [Standard(0.4, 0.5), BatchNoise(9.0)])
@pytest.mark.parametrize("case", BY_HAND)
def test_elbo_and_gradients(case, prior, elbo):
    model = make_model(prior=prior)
    guide = make_guide(case, model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    found = []
    for sites in (guide, lambda *_: BY_HAND[case](guide)):
        torch.manual_seed(4)
        loss = elbo().differentiable_loss(model, sites, x, y)
        parameters = list(guide.parameters())
        found.append([loss, *(torch.autograd.grad(loss, parameters) if parameters else ())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
