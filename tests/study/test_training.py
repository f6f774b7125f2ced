"""How studies train and judge."""

from __future__ import annotations

import time

import pytest
import torch

import pyronorm as pn
from pyronorm import datasets, guides
from pyronorm.diagnostics import fit_temperature
from pyronorm.normalizers import Analytic, Weight
from pyronorm.study import METHODS, Trained, Training, center, judge, train
from pyronorm.study.training import choose_rate, metrics, stopwatch


@pytest.fixture(scope="module")
def data() -> datasets.ImageData:
    return datasets.load("digits", 1).subset(200, 80, 1)


def trained_by(method: str, data: datasets.ImageData, **changes) -> Trained:
    torch.manual_seed(0)
    chosen = METHODS[method]
    training = Training(**{"epochs": 2, "batch_size": 40, **changes})
    return train(
        pn.networks.SmallConvNet(),
        chosen.normalizer,
        chosen.guide,
        data,
        training,
        noise=20.0,
        seed=2,
        device="cpu",
    )


def test_prior_noise_and_data(data: datasets.ImageData) -> None:
    trained = trained_by("weight/fixed", data)
    assert trained.model.num_data == 200
    assert trained.model.prior == pn.priors.BatchNoise(20.0)
    assert isinstance(trained.guide, guides.BatchNoise)
    assert trained.guide.batch_size == 20.0
    assert all(isinstance(n.normalizer, Weight) for n in trained.model.network.layers)


def test_a_bank_has_batches_of_the_training_s_size(data: datasets.ImageData) -> None:
    trained = trained_by("batch/point", data)
    bank = trained.bank(12)
    assert (len(bank), bank.batch_size) == (12, 40)
    assert trained.bank(12) is bank
    guide, seconds = trained.posterior(METHODS["batch/mcbn"], 12)
    assert isinstance(guide, guides.MonteCarloBatchNorm)
    assert seconds > trained.seconds
    assert trained.posterior(METHODS["batch/point"], 12) == (trained.guide, trained.seconds)


def test_weight_normalization_starts_from_the_data(data: datasets.ImageData) -> None:
    """Right after the start the outputs of a layer have mean 0 and variance 1 on the data."""
    trained = trained_by("weight/point", data, lr=1e-9, epochs=1)
    layer = trained.model.network.layers[0]
    found = {}

    def see(module, arguments, output) -> None:
        found["y"] = output

    handle = layer.register_forward_hook(see)
    pn.predict(trained.model, trained.guide, data.train.x, 1, batch_size=200)
    handle.remove()
    var, mean = torch.var_mean(found["y"], (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(var, torch.ones_like(var), atol=1e-2, rtol=0)


def test_analytic_normalization_gets_the_moments_of_the_images(data: datasets.ImageData) -> None:
    trained = trained_by("analytic/point", data)
    normalizer = trained.model.network.layers[0].normalizer
    expected = Analytic.from_data(data.train.x)
    assert isinstance(normalizer, Analytic)
    assert normalizer.input_mean == expected.input_mean
    assert normalizer.input_std == expected.input_std


def test_weight_decay_is_the_network_s_alone(data, monkeypatch) -> None:
    seen = []

    class Watched(torch.optim.AdamW):
        def __init__(self, groups, **options):
            seen.extend((group["name"], group["weight_decay"]) for group in groups)
            super().__init__(groups, **options)

    from pyronorm.study import training

    monkeypatch.setattr(training, "AdamW", Watched)
    trained_by("weight/mean-field", data, weight_decay=0.2)
    assert seen == [("network", 0.2), ("guide", 0.0)]


def test_the_center_is_mean_shift_and_geometric_mean_scale(data: datasets.ImageData) -> None:
    trained = trained_by("weight/mean-field", data)
    middle = center(trained.model, trained.guide, 20_000)
    assert middle.shift.shape == (1, trained.model.space.num_channels)
    error = trained.guide.shift_log_std.detach().exp().max() * 5 / 20_000**0.5
    torch.testing.assert_close(
        middle.shift[0], trained.guide.shift_loc.detach(), atol=float(error), rtol=0
    )
    torch.testing.assert_close(
        middle.scale[0], trained.guide.log_scale_loc.detach().exp(), atol=0.01, rtol=0
    )


def test_judging(data: datasets.ImageData) -> None:
    trained = trained_by("weight/mean-field", data)
    options = {"seed": 3, "outliers": data.test.x}
    values, prediction = judge(trained.model, trained.guide, data.test, 6, **options)
    again, _ = judge(trained.model, trained.guide, data.test, 6, **options)
    different = {k for k in values if values[k] != again[k]} - {"predict_ms", "nll_center"}
    assert not different
    assert values["auroc"] == pytest.approx(0.5, abs=0.02)  # the outliers are the test images
    assert values["nll_center"] != values["nll"]
    by_hand = -prediction.mean[range(80), data.test.y].log().mean()
    assert values["nll"] == pytest.approx(float(by_hand), rel=1e-5)
    point = trained_by("weight/point", data)
    alone, _ = judge(point.model, point.guide, data.test, 6, seed=3)
    assert "nll_center" not in alone
    assert "auroc" not in alone
    assert values["auroc_information"] == pytest.approx(0.5, abs=0.02)
    assert "auroc_information" not in judge(point.model, point.guide, data.test, 1, **options)[0]
    base = {"accuracy", "nll", "ece", "brier", "aurc"}
    calibrated = {"calibrated_nll", "calibrated_ece", "calibrated_brier", "temperature"}
    folds = torch.randperm(80, generator=torch.Generator().manual_seed(0)) % 10
    nll = 0.0
    for k in range(10):
        rest = folds != k
        part = prediction.likelihood.predict(prediction.outputs[:, rest])
        temperature = fit_temperature(part, data.test.y[rest])
        own = prediction.tempered(temperature).mean[~rest, data.test.y[~rest]]
        nll -= float(own.log().sum()) / 80
    assert values["calibrated_nll"] == pytest.approx(nll, rel=1e-3)
    brier = 0.0
    for k in range(10):
        rest = folds != k
        part = prediction.likelihood.predict(prediction.outputs[:, rest])
        own = prediction.tempered(fit_temperature(part, data.test.y[rest])).mean[~rest]
        truth = torch.nn.functional.one_hot(data.test.y[~rest], 10)
        brier += float((own - truth).square().sum()) / 80
    assert values["calibrated_brier"] == pytest.approx(brier, rel=1e-3)
    assert set(metrics(prediction, data.test.y)) == base | calibrated


def test_a_prediction_that_is_surely_wrong_has_the_nll_of_its_logits() -> None:
    logits = torch.zeros(1, 20, 3)
    logits[..., 0] = 200.0
    prediction = pn.likelihoods.Categorical().predict(logits)
    assert metrics(prediction, torch.ones(20, dtype=torch.long))["nll"] == pytest.approx(200)


def test_the_rate_is_that_of_the_least_calibrated_nll_on_held_out_images(data) -> None:
    seen, made = {}, []

    def make(images: datasets.ImageData, training: Training) -> Trained:
        assert len(images.train.y) == 150
        torch.manual_seed(0)
        base = METHODS["weight/fixed"]
        network = pn.networks.SmallConvNet(width=4)
        found = train(
            network, base.normalizer, base.guide, images, training, noise=20.0, seed=2, device="cpu"
        )
        made.append((training.lr, found))
        return found

    training = Training(epochs=2, batch_size=40, weight_decay=0.1)
    rates = (1e-9, 1e-2, 1e-5)
    chosen, seconds = choose_rate(make, data, training, rates, 50, 3, 4)
    _, validation = data.split_off(50, 4)
    for rate, trained in made:
        values, _ = judge(trained.model, trained.guide, validation, 3, seed=4)
        seen[rate] = values["calibrated_nll"]
    assert [rate for rate, _ in made] == list(rates)
    assert chosen == Training(2, 40, min(seen, key=seen.__getitem__), 0.1)
    assert chosen.lr == 1e-2
    assert seconds > 0
    assert choose_rate(make, data, training, (), 50, 3, 4) == (training, 0.0)
    assert len(made) == 3


def test_a_stopwatch_stops() -> None:
    with stopwatch() as spent:
        time.sleep(0.02)
        assert spent() >= 0.02
    end = spent()
    time.sleep(0.02)
    assert spent() == end >= 0.02
