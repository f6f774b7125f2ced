from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import ConversionError, DataError, OptionError, StatisticsError
from pyronorm.infer.population import batch_statistics_mode
from pyronorm.likelihoods import Categorical, Normal
from tests.nets import conv_net, mlp


def model_of(network, x, normalizer=None, likelihood=None):
    """A model in float64 with statistics of x, in one batch."""
    converted = pn.convert(network, *([normalizer] if normalizer else [])).double()
    pn.estimate_population_statistics(converted, x, batch_size=len(x))
    return pn.NormalizationModel(converted, likelihood or Categorical(), len(x))


def noise(model, num_samples=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = num_samples, model.space.num_channels
    shift = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
    scale = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3).exp()
    return pn.Draws(shift, scale)


def in_training(model, draws, x):
    """The outputs of training mode on all data at once, with these latents."""
    with torch.no_grad(), batch_statistics_mode(model.network.network):
        return model.network(x, draws.shift[:, None], draws.scale[:, None])


def in_evaluation(model, draws, x):
    model.eval()
    with torch.no_grad():
        return model.network(x, draws.shift[:, None], draws.scale[:, None])


@pytest.mark.parametrize("network", [mlp, conv_net])
@pytest.mark.parametrize("normalizer", [None, pn.normalizers.Ghost(64)])
def test_evaluation_is_then_training_mode_with_the_same_latents(network, normalizer):
    torch.manual_seed(0)
    x = torch.randn(64, 5, *(() if network is mlp else (6,)), dtype=torch.float64)
    if network is conv_net:
        x = x[:, :2]
    model = model_of(network() if network is mlp else network(1), x, normalizer)
    draws = noise(model)
    refreshed = pn.refresh_draws(model, draws, x, batch_size=64)
    expected = in_training(model, draws, x)
    torch.testing.assert_close(in_evaluation(model, refreshed, x), expected, rtol=1e-9, atol=1e-9)
    assert (in_evaluation(model, draws, x) - expected).abs().max() > 0.01


def test_a_bank_under_noise_has_a_draw_and_a_batch_in_each_row():
    torch.manual_seed(0)
    x = torch.randn(48, 5, dtype=torch.float64)
    model, batches = model_of(mlp(), x), x.split(16)
    draws = noise(model, len(batches))
    rows = pn.Draws.join(
        [
            pn.refresh_draws(model, draws[i : i + 1], batch, 1, batch_size=16)
            for i, batch in enumerate(batches)
        ]
    )
    assert len(rows) == len(batches)
    for i, batch in enumerate(batches):
        # What training mode computes of this batch with these latents.
        expected = in_training(model, draws[i : i + 1], batch)
        found = in_evaluation(model, rows[i : i + 1], batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(pn.predict(model, rows, x[:3], len(rows))) == 3


def test_two_layers_in_closed_form():
    # x has mean 0 and variance 1, the layers have no linear map between them and eps is 0: layer 2 sees
    # s (x + a), takes both out, and the first layer's latents are without effect.
    x = torch.randn(50, 1, dtype=torch.float64)
    x = (x - x.mean()) / x.std(correction=0)
    network = nn.Sequential(nn.BatchNorm1d(1, eps=0.0), nn.BatchNorm1d(1, eps=0.0))
    model = model_of(network, x, likelihood=Normal(1.0))
    (a1, a2), (s1, s2) = (0.7, -0.4), (1.5, 0.8)
    draws = pn.Draws(
        torch.tensor([[a1, a2]], dtype=torch.float64), torch.tensor([[s1, s2]], dtype=torch.float64)
    )
    refreshed = pn.refresh_draws(model, draws, x, batch_size=50)
    expected = [[a1, s1 * a2 - s1 * a1], [s1, s2 / s1]]
    actual = torch.cat([refreshed.shift, refreshed.scale])
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    prediction = pn.predict(model, refreshed, x).mean
    torch.testing.assert_close(prediction, s2 * (x + a2))
    neutral = pn.predict(model, draws, x).mean  # of another model
    torch.testing.assert_close(neutral, s2 * (s1 * (x + a1) + a2))


def test_statistics_are_pooled_over_batches_of_any_size():
    batches = [torch.randn(8, 5).double(), torch.randn(4, 5).double() * 2]
    model = model_of(mlp(), torch.cat(batches))
    draws = noise(model, 1)
    refreshed = pn.refresh_draws(model, draws, batches)
    second = model.network.layers[1]
    seen = []
    hook = second.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    for x in batches:
        in_training(model, draws, x)
    hook.remove()
    values = torch.cat(seen)
    mean, std = values.mean(0), (values.var(0, correction=0) + second.eps).sqrt()
    shift, scale = draws.shift[0].split(model.space.sizes), draws.scale[0].split(model.space.sizes)
    expected = scale[1] * ((values - mean) / std + shift[1])
    mu, sigma = second.normalizer.reference(second, values)
    shift, scale = (
        refreshed.shift[0].split(model.space.sizes),
        refreshed.scale[0].split(model.space.sizes),
    )
    torch.testing.assert_close(scale[1] * ((values - mu) / sigma + shift[1]), expected)


def test_neutral_draws_stay_neutral():
    x = torch.randn(30, 5).double()
    model = model_of(mlp(), x)
    refreshed = pn.refresh_draws(model, pn.guides.Point(model), x, 3, batch_size=30)
    torch.testing.assert_close(
        refreshed.shift, torch.zeros_like(refreshed.shift), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        refreshed.scale, torch.ones_like(refreshed.scale), rtol=0, atol=1e-12
    )


def test_networks_without_batch_statistics_keep_their_draws():
    x = torch.randn(10, 5).double()
    model = pn.NormalizationModel(
        pn.convert(mlp(), pn.normalizers.Layer()).double(), Categorical(), 10
    )
    guide = pn.guides.MeanField(model).double()
    refreshed = pn.refresh_draws(model, guide, x, 4, seed=1)
    torch.testing.assert_close(refreshed.shift, guide.draw(model, 4, seed=1).shift)
    assert refreshed.log_density is None


def test_kept_layers_keep_theirs():
    x = torch.randn(30, 5).double()
    model = model_of(mlp(), x)
    draws = noise(model)
    refreshed = pn.refresh_draws(model, draws, x, keep=model.network.layers)
    torch.testing.assert_close(refreshed.shift, draws.shift)
    torch.testing.assert_close(refreshed.scale, draws.scale)


def test_nothing_changes_and_a_seed_repeats_it():
    x = torch.randn(40, 5)
    model = pn.NormalizationModel(pn.convert(mlp()), Categorical(), 40)
    pn.estimate_population_statistics(model, x)
    guide = pn.guides.MeanField(model, init_std=0.3)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    one, two = (pn.refresh_draws(model, guide, x, 3, seed=5) for _ in range(2))
    assert torch.equal(one.shift, two.shift)
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_result_is_a_posterior_for_all(tmp_path):
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    model = pn.NormalizationModel(pn.convert(mlp()), Categorical(), 40)
    pn.estimate_population_statistics(model, x)
    chains = pn.Draws(
        torch.randn(6, model.space.num_channels),
        torch.rand(6, model.space.num_channels) + 0.5,
        hyper={"n": torch.ones(6, 2)},
        num_chains=2,
    )
    draws = pn.refresh_draws(model, chains, x)
    assert draws.num_chains == 2
    assert list(draws.hyper) == ["n"]
    pn.evaluate(model, draws, (x, y))
    pn.to_arviz(model, pn.Draws(draws.shift, draws.scale), (x, y))
    pn.save(tmp_path / "m", model, draws)
    loaded, posterior = pn.load(tmp_path / "m", mlp())
    expected = pn.predict(model, draws, x).mean
    assert torch.equal(pn.predict(loaded, posterior, x).mean, expected)


def test_what_cannot_be_is_refused_by_name():
    x = torch.randn(40, 5)
    model = pn.NormalizationModel(pn.convert(mlp()), Categorical(), 40)
    guide = pn.guides.MeanField(model)
    with pytest.raises(StatisticsError, match="statistics"):
        pn.refresh_draws(model, guide, x)
    pn.estimate_population_statistics(model, x)
    with pytest.raises(OptionError, match=r"Refresh each: pyronorm\.Ensemble"):
        pn.refresh_draws(model, pn.Ensemble([(model, guide)]), x)
    with pytest.raises(OptionError, match="num_batches"):
        pn.refresh_draws(model, guide, x, num_batches=0)
    with pytest.raises(OptionError, match="expected a posterior"):
        pn.refresh_draws(model, x, x)
    with pytest.raises(DataError):
        pn.refresh_draws(model, guide, [])
    wide = pn.Draws(
        torch.zeros(1, model.space.num_channels), torch.full((1, model.space.num_channels), 3e38)
    )
    with pytest.raises(StatisticsError, match="not finite for some draw"):
        pn.refresh_draws(model, wide, x)
    layers = (nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    straight = pn.NormalizationModel(pn.convert(nn.Sequential(*layers)), Categorical(), 40)
    pn.estimate_population_statistics(straight, x)
    wide = pn.Draws(torch.zeros(1, 7), torch.full((1, 7), 1e25))  # finite, but not its square
    with pytest.raises(StatisticsError, match="not finite for some draw"):
        pn.refresh_draws(straight, wide, x)
    whitened = pn.NormalizationModel(
        pn.convert(mlp(), pn.normalizers.BatchWhitening(2)), Categorical(), 40
    )
    pn.estimate_population_statistics(whitened, x)
    with pytest.raises(ConversionError, match="BatchWhitening"):
        pn.refresh_draws(whitened, pn.guides.MeanField(whitened), x)
