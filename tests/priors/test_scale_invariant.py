"""Oracles: invariance under location and scale, the entropy of the guide."""

import math

import pyro
import pytest
import scipy.stats
import torch
from pyro.distributions import LogNormal, Normal
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyronorm
from pyronorm.errors import OptionError
from pyronorm.priors import ScaleInvariant
from tests.priors.laws import pair


def latents(num_channels=3):
    return pair(ScaleInvariant(), num_channels, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_density_is_invariant(factor):
    """p(shift + c) = p(shift); p(scale · c) c^channels = p(scale)."""
    shift, scale = latents()
    x = torch.rand(4, 3, dtype=torch.float64) + 0.1
    torch.testing.assert_close(shift.log_prob(x - factor), shift.log_prob(x))
    jacobian = 3 * math.log(factor)
    torch.testing.assert_close(scale.log_prob(factor * x) + jacobian, scale.log_prob(x))


def test_density_by_hand():
    shift, scale = latents()
    x = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    assert shift.log_prob(x).item() == 0.0
    assert scale.log_prob(x).item() == pytest.approx(-math.log(4.0))


@pytest.mark.parametrize("site", [0, 1])
def test_draws_are_refused_with_the_remedy(site):
    name = ("ImproperFlat", "ImproperLogUniform")[site]
    match = rf"^{name} is improper.*init_to_neutral.*NUTS.*pyronorm\.run_nuts.*Standard, BatchNoise"
    with pytest.raises(OptionError, match=match):
        latents()[site].sample()


def sites():
    for name, d in zip(("shift", "scale"), latents(), strict=True):
        pyro.sample(name, d)


def test_the_remedy_works():
    with pytest.raises(OptionError, match="is improper"):
        AutoNormal(sites)()
    guide = AutoNormal(sites, init_loc_fn=pyronorm.init_to_neutral, init_scale=1e-6)
    draws = guide()
    torch.testing.assert_close(draws["shift"], torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(draws["scale"], torch.ones(3).double(), rtol=0, atol=1e-4)


def test_kl_is_minus_the_entropy_of_shift_and_log_scale():
    loc = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    std, width = torch.tensor([[0.2, 0.5, 1.5], [0.1, 0.3, 0.6]], dtype=torch.float64)

    def guide():
        pyro.sample("shift", Normal(loc, std).to_event(1))
        pyro.sample("scale", LogNormal(loc, width).to_event(1))

    expected = -sum(scipy.stats.norm.entropy(loc, w).sum() for w in (std.numpy(), width.numpy()))
    assert TraceMeanField_ELBO().loss(sites, guide) == pytest.approx(expected, rel=1e-10)


def test_is_a_value():
    assert ScaleInvariant() == ScaleInvariant()
