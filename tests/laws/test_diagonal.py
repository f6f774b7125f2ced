"""Oracles: the distributions, and torch's divergences between them."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyronorm.laws import Independent, Joint, kl
from pyronorm.laws.diagonal import Diagonal, divergence_to
from pyronorm.laws.law import log_normal, normal
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.priors.laws import space

C = 4
LIKE = torch.zeros(0, dtype=torch.float64)
KNOWN = {
    "Standard": Standard(0.7, 0.4).law(space(C), LIKE),
    "BatchNoise": BatchNoise(50_000.0).law(space(C), LIKE),
    "ScaleInvariant": ScaleInvariant().law(space(C), LIKE),
    "away from neutral": Independent(
        normal(torch.arange(C).double(), torch.full((C,), 0.3).double()),
        log_normal(-torch.arange(C).double(), torch.full((C,), 2.0).double()),
    ),
}


def diagonal() -> Diagonal:
    torch.manual_seed(0)
    parts = torch.randn(4, C, dtype=torch.float64) / 3
    return Diagonal(*(part.clone().requires_grad_() for part in parts))


def parameters(q: Diagonal) -> list[torch.Tensor]:
    return [q.shift_loc, q.shift_log_std, q.log_scale_loc, q.log_scale_log_std]


@pytest.mark.parametrize("name", KNOWN)
def test_a_draw_and_its_divergence_are_those_of_the_distributions(name):
    q, p = diagonal(), KNOWN[name]
    divergence = divergence_to(p)
    assert divergence is not None
    torch.manual_seed(1)
    found = q.draw_against(divergence)
    torch.manual_seed(1)
    expected = (
        q.shift.rsample(),
        q.scale.rsample(),
        kl_divergence(q.shift, p.shift) + kl_divergence(q.scale, p.scale),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(shift.sum() + 0.3 * scale.square().sum() + 0.7 * total, parameters(q))
        for shift, scale, total in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kl(q, p), expected[2])


@pytest.mark.parametrize(
    "p",
    [
        BatchNoise(9.0, shift=False).law(space(C), LIKE),
        Independent(KNOWN["Standard"].shift, dist.Gamma(2.0, 2.0).expand([C]).to_event(1)),
        Independent(*(f.expand((2,)) for f in KNOWN["Standard"].marginals())),
        Joint(dist.MultivariateNormal(LIKE.new_zeros(2 * C), torch.eye(2 * C).double())),
    ],
)
def test_of_others_nothing_is_known(p):
    assert divergence_to(p) is None


def test_it_reads_as_its_distributions():
    q = diagonal()
    same = Independent(q.shift, q.scale)
    torch.testing.assert_close(q.entropy(), same.entropy())
    levels = torch.tensor([0.1, 0.5]).double()
    torch.testing.assert_close(q.quantiles(levels), same.quantiles(levels))
    draws = same.draw(3)
    torch.testing.assert_close(q.log_prob(draws.shift, draws.scale), draws.log_density)
