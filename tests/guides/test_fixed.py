from __future__ import annotations

import pytest
import torch

from pyronorm import priors
from pyronorm.errors import OptionError
from pyronorm.guides import BatchNoise, Fixed
from pyronorm.laws import Independent
from pyronorm.laws.law import log_normal, normal
from pyronorm.priors import HierarchicalBatchNoise, Prior, ScaleInvariant, Standard
from tests.guides.cases import make_model


@pytest.mark.parametrize("prior", [Standard(0.3, 0.2), priors.BatchNoise(9.0)])
def test_is_the_law_of_the_prior(prior):
    model = make_model(prior=prior)
    guide = Fixed(model, prior)
    draws = guide.draw(model, 5, seed=3)
    assert torch.equal(draws.shift, prior.draws(model, 5, seed=3).shift)
    assert guide.kl(prior).item() == 0.0
    assert not list(guide.parameters())


def test_batch_noise_is_the_short_form():
    model = make_model()
    a, b = BatchNoise(model, 9.5), Fixed(model, priors.BatchNoise(9.5))
    draws = a.draw(model, 5, seed=3)
    assert torch.equal(draws.scale, b.draw(model, 5, seed=3).scale)
    assert torch.equal(a.log_prob(draws.shift, draws.scale), b.log_prob(draws.shift, draws.scale))


def test_hyperparameters_are_drawn_from_the_prior():
    prior = HierarchicalBatchNoise(16.0, 3.0, "network")
    model = make_model(prior=prior)
    guide = Fixed(model, prior)
    assert guide.hyper is None
    draws = guide.draw(model, 4, seed=1)
    assert draws.hyper["df"].shape == (4, 1)
    assert guide.kl(prior, 10).abs() < 1e-4
    with pytest.raises(OptionError, match=r"has the hyperparameters \['df'\], .* has \[\]"):
        Fixed(make_model(), prior)


def test_state_is_whole():
    """What the law is cannot be lost on the way."""
    model = make_model()
    small, large = BatchNoise(model, 5), BatchNoise(model, 100)
    small.load_state_dict(large.state_dict())
    assert small.batch_size == 100.0
    assert small.settings() == {"batch_size": 100.0, "shift": True, "scale": True}
    other = Fixed(model, Standard(0.3, 0.2))
    other.load_state_dict(Fixed(model, Standard(0.3, 0.2)).state_dict())
    with pytest.raises(
        OptionError, match=r"state is that of the prior .*BatchNoise.*, this guide has"
    ):
        other.load_state_dict(Fixed(model, priors.BatchNoise(9.0)).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        small.load_state_dict({})


class Mine(Prior):
    def law(self, space, like):
        zeros = like.new_zeros(space.num_channels)
        return Independent(normal(zeros, zeros + 1), log_normal(zeros, zeros + 1))


def test_refusals(unchecked):
    model = make_model()
    with pytest.raises(OptionError, match="improper, it has no draws"):
        Fixed(model, ScaleInvariant())
    with pytest.raises(OptionError, match="prior must be a Prior, such as .*, got float"):
        Fixed(model, 3.0)
    with pytest.raises(OptionError, match="Mine: a prior is a frozen dataclass of settings"):
        Fixed(model, Mine()).settings()
    settings = {"prior": {"class": "no.such.module:Prior", "settings": {}}}
    with pytest.raises(OptionError, match=r"needs the class Prior of the module no\.such\.module"):
        Fixed.from_settings(model, settings)
