"""Closed forms against Monte Carlo of log q/p, within 5 standard errors."""

from __future__ import annotations

import math

import pytest
import torch

from pyronorm.errors import NoDensityError, OptionError
from pyronorm.laws import Independent, Joint, Rows, kl
from pyronorm.laws.law import log_normal, normal
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.laws.test_kinds import LAWS, LOC, STD, C
from tests.priors.laws import space

LIKE = torch.zeros(1)
PRIORS = [Standard(0.7, 0.4), BatchNoise(9.0), ScaleInvariant()]


def monte_carlo(q, p, n=20_000):
    torch.manual_seed(0)
    draws = q.draw(n)
    ratio = draws.log_density - p.log_prob(draws.shift, draws.scale, draws.hyper)
    return ratio.mean(), 5 * ratio.std() / math.sqrt(n)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "q", [Independent(normal(LOC, STD / 3), log_normal(LOC, STD / 3)), BatchNoise(20.0)]
)
def test_closed_forms_of_independent_laws(q, prior):
    q = q.law(space(C), LIKE) if isinstance(q, BatchNoise) else q
    p = prior.law(space(C), LIKE)
    mean, error = monte_carlo(q, p)
    assert abs(kl(q, p) - mean) < error + 1e-5


@pytest.mark.parametrize("p", [LAWS["Joint"](), Standard(0.7, 0.4).law(space(C), LIKE)])
def test_closed_forms_of_a_joint_gaussian(p):
    q = Joint(LAWS["Joint"]().latents.expand(()))
    q.latents.loc = q.latents.loc + 0.1
    mean, error = monte_carlo(q, p)
    assert abs(kl(q, p) - mean) < error
    assert kl(q, p) > 0.01


def test_of_the_same_law_it_is_zero():
    q = BatchNoise(12.5).law(space(C), LIKE)
    assert kl(q, BatchNoise(12.5).law(space(C), LIKE)).item() == 0.0


@pytest.mark.parametrize("kind", ["ScaleGivenShift", "ShiftGivenScale", "Hierarchical"])
def test_without_a_closed_form_it_is_estimated_or_refused(kind):
    q = LAWS[kind]()
    p = q if kind == "Hierarchical" else BatchNoise(9.0).law(space(C), LIKE)
    with pytest.raises(OptionError, match=f"no closed form from {kind} .* num_samples=1000"):
        kl(q, p)
    mean, error = monte_carlo(q, p)
    torch.manual_seed(1)
    assert abs(kl(q, p, 20_000) - mean) < 2 * error + 1e-5


def test_it_is_differentiable_in_both():
    mean, std = LOC.clone().requires_grad_(), STD.clone().requires_grad_()
    q = Independent(normal(mean, STD), log_normal(LOC, STD))
    p = Independent(normal(LOC * 0, std), log_normal(LOC, STD))
    kl(q, p).backward()
    torch.testing.assert_close(mean.grad, LOC / STD**2)
    torch.testing.assert_close(std.grad, 1 / STD - (STD**2 + LOC**2) / STD**3)


def test_rows_have_none():
    rows = Rows(torch.zeros(2, C), torch.ones(2, C), "a bank")
    with pytest.raises(NoDensityError, match="both laws need a density"):
        kl(rows, LAWS["Independent"]())
