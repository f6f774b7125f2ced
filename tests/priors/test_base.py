"""What every prior keeps: shapes, dtype, independent and identical channels."""

import pyro
import pytest
import torch
from pyro.distributions import InverseGamma, Laplace
from pyro.infer import Trace_ELBO
from torch.distributions import constraints

from pyronorm.laws import Independent
from pyronorm.priors import BatchNoise, Prior, ScaleInvariant, Standard
from tests.priors.laws import pair


class Own(Prior):
    """A prior of a user."""

    def law(self, space, like):
        ones = like.new_ones(space.num_channels)
        shift, scale = Laplace(0 * ones, 0.3 * ones), InverseGamma(5 * ones, 4 * ones)
        return Independent(shift.to_event(1), scale.to_event(1))


PRIORS = [BatchNoise(6.5), Standard(0.4, 0.3), ScaleInvariant(), Own()]
PROPER = [prior for prior in PRIORS if not isinstance(prior, ScaleInvariant)]
priors = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
proper = pytest.mark.parametrize("prior", PROPER, ids=lambda p: type(p).__name__)


def test_prior_is_abstract():
    with pytest.raises(TypeError, match=r"abstract class Prior .*law"):
        Prior()


@priors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtype_and_support(prior, dtype):
    values = torch.rand(2, 5, dtype=dtype) + 0.1
    supports = constraints.real, constraints.positive
    for d, support in zip(pair(prior, 5, values), supports, strict=True):
        assert (d.batch_shape, d.event_shape) == ((), (5,))
        assert d.log_prob(values).shape == (2,)
        assert d.log_prob(values).dtype == dtype
        assert d.support.base_constraint is support


@priors
def test_channels_are_independent_and_identical(prior):
    values = torch.rand(4, 3, dtype=torch.float64) + 0.5
    together = pair(prior, 3, values)
    single = pair(prior, 1, values)
    for d, one in zip(together, single, strict=True):
        by_channel = torch.stack([one.log_prob(values[:, [c]]) for c in range(3)]).sum(0)
        torch.testing.assert_close(d.log_prob(values), by_channel)


@priors
def test_values_of_like_do_not_matter(prior):
    values = torch.rand(3, dtype=torch.float64) + 0.5
    a = pair(prior, 3, torch.full((7,), torch.nan, dtype=torch.float64))
    b = pair(prior, 3, torch.zeros((), dtype=torch.float64))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.log_prob(values), y.log_prob(values))


@proper
def test_densities_integrate_to_one(prior):
    shift, scale = pair(prior, 1, torch.zeros(1, dtype=torch.float64))
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64)  # shift, log scale
    for log_density in (shift.log_prob(t[:, None]), scale.log_prob(t.exp()[:, None]) + t):
        total = torch.trapezoid(log_density.exp(), t)
        assert total.item() == pytest.approx(1.0, abs=1e-5)


@proper
def test_draws_are_finite_positive_and_differ(prior):
    for d in pair(prior, 4, torch.zeros(1, dtype=torch.float64)):
        x = d.sample((50,))
        assert x.shape == (50, 4)
        assert x.isfinite().all()
        assert x.unique().numel() == 200
    assert (x > 0).all()  # the scale


@priors
def test_log_density_of_a_trace(prior):
    """As sites of a Pyro model, under a guide that fixes the values."""
    values = {"shift": torch.tensor([0.3, -0.1]), "scale": torch.tensor([0.8, 1.3])}
    law = dict(zip(values, pair(prior, 2, torch.zeros(1)), strict=True))
    model = pyro.condition(lambda: [pyro.sample(n, d) for n, d in law.items()], values)
    expected = -sum(law[name].log_prob(values[name]) for name in values)
    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(expected.item(), rel=1e-6)
