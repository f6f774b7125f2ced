from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal

from pyronorm.errors import OptionError, ShapeError
from pyronorm.infer import PyroGuide, as_posterior
from tests.guides.cases import CASES, make_guide, make_model


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_density(case):
    model = make_model(draws=3)
    draws = as_posterior(make_guide(case, model), "test").draw(model, 7)
    assert draws.shift.shape == draws.scale.shape == (7, 10)
    assert (draws.log_density is None) == (case in ("Point", "MonteCarloBatchNorm"))
    assert len(draws) == 7


def test_density_of_a_mean_field_guide():
    model = make_model()
    guide = make_guide("MeanField", model)
    draws = as_posterior(guide, "test").draw(model, 5)
    shift = torch.distributions.Normal(torch.zeros(10), 0.1).log_prob(draws.shift).sum(1)
    scale = torch.distributions.LogNormal(torch.zeros(10), 0.1).log_prob(draws.scale).sum(1)
    torch.testing.assert_close(draws.log_density, shift + scale)


@pytest.mark.parametrize("make", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta])
def test_autoguides(make):
    model = make_model()
    guide = make(model)
    with pytest.raises(OptionError, match=rf"{make.__name__} has not been trained"):
        as_posterior(guide, "test").draw(model, 5)
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    draws = as_posterior(guide, "test").draw(model, 5)
    assert draws.shift.shape == (5, 10)
    assert (draws.log_density is None) == (make is AutoDelta)


def test_density_of_a_joint_autoguide_includes_the_jacobian():
    model = make_model()
    guide = AutoLowRankMultivariateNormal(model, rank=2)
    guide(torch.randn(4, 5), torch.randint(3, (4,)))
    draws = as_posterior(guide, "test").draw(model, 5)
    posterior = guide.get_posterior()
    z = torch.cat([draws.shift, draws.scale.log()], -1)
    expected = posterior.log_prob(z) - draws.scale.log().sum(1)
    torch.testing.assert_close(draws.log_density, expected, rtol=1e-4, atol=1e-4)


def test_a_guide_of_ones_own_gets_the_first_batch():
    model = make_model()
    seen = []

    def guide(x, y):
        seen.append(len(x))
        shift = dist.Normal(torch.zeros(10), x.std()).to_event(1)
        pyro.sample("shift", shift)
        pyro.sample("scale", dist.LogNormal(torch.zeros(10), 0.1).to_event(1))

    draws = PyroGuide(guide).draw(model, 6, data=[(torch.randn(4, 5), torch.zeros(4))])
    assert seen == [4]
    assert draws.log_density.shape == (6,)


def test_the_models_mode_is_kept():
    model = make_model()
    as_posterior(make_guide("MeanField", model), "test").draw(model, 2)
    assert model.training


def test_errors():
    model = make_model()
    with pytest.raises(OptionError, match="num_samples must be at least 1, got 0"):
        as_posterior(make_guide("Point", model), "test").draw(model, 0)
    with pytest.raises(ShapeError, match="does not sample the site 'shift'"):
        PyroGuide(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).draw(model, 3)

    def other():
        pyro.sample("shift", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))

    with pytest.raises(ShapeError, match=r"shape \(3, 1, 4\) for 3 draws, expected \(3, 1, 10\)"):
        PyroGuide(other).draw(model, 3)
