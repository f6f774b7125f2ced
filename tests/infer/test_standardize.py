from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.diagnostics import realized_noise
from pyronorm.errors import DataError, OptionError, ShapeError, StatisticsError
from tests.normalizers.cases import NORMALIZERS


def classifier(normalizer, images):
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    with torch.no_grad():
        network(images)  # so that there are population statistics
    network = pn.convert(network, normalizer, example_input=images[:8])
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), len(images))


def images():
    x = torch.randn(64, 2, 4, 4) + 0.5
    return x, (x[:, 0].mean((1, 2)) > 0.5).long()


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_noise_of_n_is_noise_of_n_for_every_normalizer_after_training(kind):
    x, y = images()
    model = classifier(NORMALIZERS[kind], x)
    guide = pn.guides.BatchNoise(model, 16)
    relative = pn.StandardizedLatents(x, every=3)
    pn.fit(
        model, guide, (x, y), epochs=6, batch_size=16, lr=0.1, callbacks=[relative], seed=0,
        progress=False,
    )  # fmt: skip
    for row in realized_noise(model, guide, x, 4096):
        assert row.realized == pytest.approx(16, rel=0.1)
    if kind in ("Weight", "Analytic"):
        model.network.standardization.clear()
        for row in realized_noise(model, guide, x, 4096):
            assert not 8 < row.realized < 32  # without it


def weight_model(dtype=torch.float64):
    x, _ = images()
    model = classifier(pn.normalizers.Weight(), x).to(dtype)
    x = x.to(dtype)
    with torch.no_grad():
        for layer in model.network.layers:
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
    return model, x


def test_the_latents_act_on_what_is_standardized():
    model, x = weight_model()
    network = model.network
    neutral = network(x)
    pn.standardize_latents(model, x, batch_size=24)
    assert torch.equal(network(x), neutral)
    shift, scale = (v.double() for v in (torch.randn(5, 1, 14), torch.rand(5, 1, 14) + 0.5))
    torch.testing.assert_close(network(x, 0 * shift[0, 0], 0 * shift[0, 0] + 1), neutral)
    first, second = network.layers

    def by_hand(shift, scale):
        h = x
        for layer, a, b in zip(
            (first, second), shift.split((6, 8)), scale.split((6, 8)), strict=True
        ):
            hat = layer.normalizer.normalize(layer, h, None, None)
            reference = layer.normalizer.normalize(layer, clean[layer], None, None)
            mean = reference.mean((0, 2, 3), keepdim=True)
            std = reference.var((0, 2, 3), keepdim=True, correction=0).sqrt()
            a, b, weight, bias = (v.view(1, -1, 1, 1) for v in (a, b, layer.weight, layer.bias))
            h = weight * (mean + std * b * ((hat - mean) / std + a)) + bias
            h = h.relu() if layer is first else h
        return model.network.network[-2:](h)

    clean = {first: x, second: first(x).relu()}
    expected = torch.stack([by_hand(a[0], b[0]) for a, b in zip(shift, scale, strict=True)])
    torch.testing.assert_close(network(x, shift, scale), expected)
    torch.testing.assert_close(network(x, shift[1, 0], scale[1, 0]), expected[1])
    each = network(x[:5], shift[:, 0], scale[:, 0])  # a draw for each example
    torch.testing.assert_close(each, expected[range(5), range(5)])


def test_reference_statistics_are_those_of_the_data():
    model, x = weight_model()
    network = model.network
    pn.standardize_latents(network, x)
    mean, std = network.reference_statistics()
    first = network.layers[0]
    hat = first.normalizer.normalize(first, x, None, None)
    own_mean, own_std = first.normalizer.reference(first, x)
    torch.testing.assert_close(mean[:6], own_mean + own_std * hat.mean((0, 2, 3)))
    torch.testing.assert_close(std[:6], own_std * hat.var((0, 2, 3), correction=0).sqrt())
    network.standardization.clear()
    torch.testing.assert_close(network.reference_statistics()[1][:6], own_std)


def test_it_is_a_part_of_the_state_and_of_the_file(tmp_path):
    model, x = weight_model(torch.float32)
    guide = pn.guides.BatchNoise(model, 8)
    fresh = copy.deepcopy(model)
    absolute = pn.predict(model, guide, x, 4, seed=0).mean
    pn.standardize_latents(model, x)
    expected = pn.predict(model, guide, x, 4, seed=0).mean
    assert not torch.allclose(absolute, expected, atol=1e-3)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(pn.predict(fresh, guide, x, 4, seed=0).mean, expected)
    pn.save(tmp_path / "model.safetensors", model, guide)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    loaded, posterior = pn.load(tmp_path / "model.safetensors", network)
    assert torch.equal(pn.predict(loaded, posterior, x, 4, seed=0).mean, expected)
    model.network.standardization.clear()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(pn.predict(fresh, guide, x, 4, seed=0).mean, absolute)


def test_running_changes_nothing():
    model, x = weight_model()
    pn.standardize_latents(model, x)
    state = copy.deepcopy(model.state_dict())
    model.network(x, torch.randn(3, 1, 14).double(), torch.rand(3, 1, 14).double() + 0.5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_batch_statistics_are_left_as_they_are():
    x, _ = images()
    model = classifier(None, x)
    pn.standardize_latents(model, x)  # before there are population statistics
    assert model.network.standardization.mean is None
    assert not any("standardization" in name for name in model.state_dict())


def test_what_cannot_be_is_refused():
    model, x = weight_model()
    with pytest.raises(DataError, match="standardize_latents: there is no batch"):
        pn.standardize_latents(model, [])
    with pytest.raises(OptionError, match="plain network"):
        pn.standardize_latents(pn.LatentNetwork(nn.Linear(2, 2), plain=True), x)
    with pytest.raises(ShapeError, match=r"mean must have shape \(14,\)"):
        model.network.standardization.set(torch.zeros(3), torch.ones(3))
    with pytest.raises(DataError, match="deviations at least 0"):
        model.network.standardization.set(torch.zeros(14), -torch.ones(14))
    with pytest.raises(OptionError, match="StandardizedLatents: every must be"):
        pn.StandardizedLatents(x, every=0)
    with torch.no_grad():
        model.network.layers[1].part("linear").weight[2] = torch.inf
    with pytest.raises(StatisticsError, match="what 4 makes of the data"):
        pn.standardize_latents(model, x)
    assert model.network.standardization.mean is None
