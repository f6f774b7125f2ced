from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import LogNormal, Normal

import pyronorm as pn
from pyronorm.errors import OptionError
from pyronorm.guides import MeanField, Mixture
from tests.guides.cases import make_model


def scrambled(model, components):
    guide = Mixture(model, components, spread=0.5)
    with torch.no_grad():
        guide.log_std.normal_(-1, 0.3)
    return guide


def test_log_density_against_brute_force():
    model = make_model()
    guide = scrambled(model, 3)
    draws = guide.draw(model, 7, seed=0)
    c = model.space.num_channels
    terms = []
    for loc, std in zip(guide.loc, guide.log_std.exp(), strict=True):
        shift = Normal(loc[:c], std[:c]).log_prob(draws.shift).sum(1)
        terms.append(shift + LogNormal(loc[c:], std[c:]).log_prob(draws.scale).sum(1))
    expected = (sum(term.double().exp() for term in terms) / 3).log().float()
    torch.testing.assert_close(guide.log_prob(draws.shift, draws.scale), expected)
    torch.testing.assert_close(draws.log_density, expected)


def test_draws_are_balanced_and_each_is_of_the_mixture():
    model = make_model()
    guide = Mixture(model, 4, init_std=1e-3, spread=1.0)
    first = torch.zeros(4)
    for seed in range(40):
        draws = guide.draw(model, 8, seed=seed)
        component = guide.component(draws)
        assert torch.equal(component.bincount(minlength=4), torch.full((4,), 2))
        first += component[:1].bincount(minlength=4)
        c = model.space.num_channels
        torch.testing.assert_close(draws.shift, guide.loc[component, :c], atol=0.01, rtol=0)
    assert bool((first > 2).all())  # the first draw is not always of the same one


@pytest.mark.parametrize("batch_size", [None, 12.0])
def test_one_component_is_mean_field(batch_size):
    model = make_model()
    one = Mixture(model, 1, spread=2.0, batch_size=batch_size)
    other = MeanField(model) if batch_size is None else MeanField.from_batch_size(model, batch_size)
    draws = other.draw(model, 5, seed=0)
    torch.testing.assert_close(one.log_prob(draws.shift, draws.scale), draws.log_density)
    parameters = {name for name, _ in one.named_parameters()}
    assert parameters == ({"loc", "log_std"} if batch_size is None else {"loc"})


class Square(nn.Module):
    def forward(self, x):
        return x.square()[:, 0]


def two_modes():
    """The output is (scale * shift)^2, so that the posterior has modes at shifts of -1 and 1."""
    network = nn.Sequential(nn.BatchNorm1d(1, affine=False), Square())
    converted = pn.convert(network).eval()
    pn.trust_statistics(converted)
    likelihood = pn.likelihoods.Normal(0.5)
    x, y = torch.zeros(20, 1), 1 + 0.3 * torch.randn(20)
    return pn.NormalizationModel(converted, likelihood, 20, pn.priors.Standard(1, 0.1)), (x, y)


def test_it_finds_two_modes_where_mean_field_finds_one():
    model, data = two_modes()
    modes = {}
    for kind in (lambda m: Mixture(m, 2, spread=0.5), lambda m: MeanField(m, 0.1)):
        torch.manual_seed(1)
        guide = kind(model)
        if isinstance(guide, MeanField):
            with torch.no_grad():
                guide.shift_loc.fill_(0.3)
        pn.fit(
            model, guide, data, epochs=150, batch_size=20, lr=0.05, train_network=False, seed=0,
            progress=False,
        )  # fmt: skip
        shift = guide.draw(model, 200, seed=0).shift[:, 0]
        modes[type(guide).__name__] = sorted({round(float(s)) for s in shift if abs(s) > 0.5})
    assert modes["Mixture"] == [-1, 1]
    assert modes["MeanField"] == [1]


def test_each_component_has_statistics_of_its_own():
    model = make_model()
    x = torch.randn(40, 5)
    pn.estimate_population_statistics(model, x)
    guide = Mixture(model, 2, init_std=1e-4, spread=0.5)
    draws = pn.refresh_draws(model, guide, x, 2, seed=0)
    raw = guide.draw(model, 2, seed=0)
    last = slice(model.space.sizes[0], None)
    assert not torch.allclose(draws.shift[:, last], raw.shift[:, last], atol=1e-2)
    torch.testing.assert_close(  # the first layer sees no latents
        draws.shift[:, : model.space.sizes[0]],
        raw.shift[:, : model.space.sizes[0]],
        atol=1e-4,
        rtol=1e-3,
    )


def test_what_cannot_be_is_refused():
    model = make_model()
    with pytest.raises(OptionError, match="guides.Mixture: batch_size must be"):
        Mixture(model, batch_size=1.0)
    with pytest.raises(OptionError, match="no exact medians"):
        Mixture(model).median()
