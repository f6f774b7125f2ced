import dataclasses

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.latents import Draws
from tests.nets import ResNet, mlp


@pytest.fixture
def model():
    network = pn.convert(ResNet())
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=20)


def some(count, channels, chains=1, start=0.0):
    value = start + torch.arange(count * channels, dtype=torch.float64).reshape(count, channels)
    return Draws(
        value,
        (value / 1000).exp(),
        value[:, 0],
        {"n": value[:, :2]},
        chains,
        {"diverging": torch.arange(count) % 3 == 0},
    )


def test_all_of_them(model):
    channels = model.space.num_channels
    draws = some(6, channels, chains=2)
    taken = draws.draw(model, 6)
    assert taken.shift.dtype == model.network.like.dtype
    torch.testing.assert_close(taken.shift.double(), draws.shift)
    assert (taken.num_chains, len(taken)) == (2, 6)


def test_evenly_spaced_in_every_chain(model):
    draws = some(10, model.space.num_channels, chains=2)
    taken = draws.draw(model, 4)
    rows = torch.tensor([0, 4, 5, 9])
    torch.testing.assert_close(taken.shift.double(), draws.shift[rows])
    torch.testing.assert_close(taken.hyper["n"].double(), draws.hyper["n"][rows])
    assert torch.equal(taken.stats["diverging"], draws.stats["diverging"][rows])
    assert taken.num_chains == 2
    three = draws.draw(model, 3)
    torch.testing.assert_close(three.shift.double(), draws.shift[[0, 4, 9]])
    assert three.num_chains == 1


def test_refuses_more_than_there_are_and_another_network(model):
    draws = some(5, model.space.num_channels)
    for number, message in ((0, "at least 1, an integer, got 0"), (6, "between 1 and 5")):
        with pytest.raises(OptionError, match=message):
            draws.draw(model, number)
    with pytest.raises(ShapeError):
        some(5, model.space.num_channels + 1).draw(model, 2)


def test_join_puts_chains_side_by_side_and_keeps_what_all_know():
    a, b = some(6, 3, chains=2), some(3, 3, start=100.0)
    joined = Draws.join([a, b])
    assert (joined.num_chains, len(joined)) == (3, 9)
    assert torch.equal(joined.shift[6:], b.shift)
    assert torch.equal(joined.log_density, torch.cat([a.log_density, b.log_density]))
    bare = Draws.join([a, Draws(b.shift, b.scale)])
    assert (bare.log_density, bare.hyper, bare.stats) == (None, {}, {})
    with pytest.raises(OptionError, match="one length"):
        Draws.join([a, a[:2]])
    with pytest.raises(ShapeError):
        Draws.join([a, some(3, 4)])


def test_shapes_are_checked():
    ones = torch.ones(4, 3)
    with pytest.raises(ShapeError, match="one shape"):
        Draws(ones, torch.ones(4, 2))
    with pytest.raises(ShapeError, match="log_density"):
        Draws(ones, ones, torch.ones(3))
    with pytest.raises(ShapeError, match="energy"):
        Draws(ones, ones, stats={"energy": torch.tensor(1.0)})
    with pytest.raises(OptionError, match="3 chains"):
        Draws(ones, ones, num_chains=3)


def test_repr_is_a_line():
    assert repr(some(6, 3, 2)) == (
        "Draws(6 draws of 3 channels, 2 chains, with n, log_density, diverging, cpu)"
    )


@pytest.mark.parametrize("posterior", ["a trained guide", "NUTS", "refreshed"])
def test_draws_belong_to_the_weights_they_were_made_for(posterior, tmp_path):
    network = pn.convert(mlp())
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=20)
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    pn.estimate_population_statistics(model, x)
    guide = pn.guides.MeanField(model)
    if posterior == "NUTS":
        draws = pn.run_nuts(model, (x, y), 4, 1, 1, max_tree_depth=1, progress=False)
    elif posterior == "refreshed":
        draws = pn.refresh_draws(model, guide, x, 4)
    else:
        guide.stamp(model)
        draws = guide.draw(model, 4)
    draws.save(tmp_path / "draws")
    kept = pn.Draws.load(tmp_path / "draws")
    pn.predict(model, kept, x)
    with torch.no_grad():
        network[0].weight.mul_(2)
    pn.estimate_population_statistics(model, x)
    for some in (draws, kept, draws[:2], draws.to("cpu"), pn.Draws.join([draws, kept])):
        with pytest.raises(StatisticsError, match="Draws: they belong to other weights than"):
            pn.predict(model, some, x)
    pn.predict(model, dataclasses.replace(draws, weights=0), x)
