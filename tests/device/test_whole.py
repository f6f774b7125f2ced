"""Whatever takes a model gives on the device what it gives on the CPU, wherever the rest is.

The model is on the device; the data, and the posterior or the bank, are there or on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm import baselines, diagnostics, guides
from tests.device.cases import make_data, make_fabric, make_model
from tests.simulated_device import DEVICE

CPU = torch.device("cpu")


@dataclass
class Setup:
    """A model somewhere, and functions that put data and posteriors somewhere."""

    model_at: torch.device
    data_at: torch.device
    rest_at: torch.device

    def model(self, *args: str) -> pn.NormalizationModel:
        torch.manual_seed(0)
        return make_model(*args).to(self.model_at)

    def data(self, *args: Any) -> tuple[Tensor, Tensor]:
        x, y = make_data(*args)
        return x.to(self.data_at), y.to(self.data_at)

    def guide(self, *args: str) -> nn.Module:
        model = self.model(*args)
        return guides.MeanField(model).to(self.rest_at)

    def bank(self) -> pn.StatisticsBank:
        model = self.model()
        return pn.collect_bank(model.to(self.rest_at), self.data()[0], 24, batch_size=6)

    def rest(self, x: Tensor) -> Tensor:
        return x.to(self.rest_at)

    def seeded(self) -> None:
        torch.manual_seed(5)


CALLS: dict[str, Callable[[Setup], Any]] = {}


def call(function: Callable[[Setup], Any]) -> Callable[[Setup], Any]:
    CALLS[function.__name__] = function
    return function


def fields(prediction: Any) -> list[Tensor]:
    return [prediction.mean, prediction.variance, prediction.entropy]


@call
def predict_guide(s):
    model, guide = s.model(), s.guide()
    return fields(pn.predict(model, guide, s.data(), 4, seed=1))


@call
def predict_bank(s):
    return fields(pn.predict(s.model(), s.bank(), s.data(), 10))


@call
def predict_ensemble(s):
    other = pn.NormalizationModel(s.model().network.to(s.rest_at), pn.likelihoods.Categorical(), 24)
    model = s.model()
    ensemble = pn.Ensemble([(model, s.guide()), (other, guides.MeanField(other))])
    return fields(pn.predict(model, ensemble, s.data(), 3, seed=1))


@call
def guides_of_a_bank(s):
    model, bank = s.model(), s.bank()
    found = [
        guides.StochasticBatchNorm(model, bank),
        guides.LowRank.from_bank(model, bank, 2),
        guides.Paired.from_bank(model, bank),
        guides.EffectiveBatchSize.from_bank(model, bank),
        guides.PopulationStatistics.from_bank(model, bank, 24),
    ]
    return [pn.predict(model, guide, s.data(), 4, seed=1).mean for guide in found]


@call
def evaluate(s):
    model, guide = s.model(), s.guide()
    return pn.evaluate(model, guide, s.data(), 4, seed=1)


@call
def metrics_of_a_prediction(s):
    model = s.model("Group", "Standard", "Normal")
    guide = s.guide("Group", "Standard", "Normal")
    x, y = s.data("Normal")
    prediction = pn.predict(model, guide, x, 4, seed=1)
    interval = prediction.interval(0.8)
    return prediction.metrics(s.rest(y)), interval.lower, prediction.quantiles([0.1, 0.6])


@call
def nuts(s):
    draws = pn.run_nuts(s.model(), s.data(), 4, 2, 2, max_tree_depth=2, progress=False, seed=1)
    stored = draws.to(s.rest_at)
    return draws.shift, pn.predict(s.model(), stored, s.data(), 4).mean


@call
def arviz(s):
    idata = pn.to_arviz(s.model(), s.guide(), s.data(), num_samples=50, seed=1)
    found = [idata["posterior"]["shift"], idata["log_likelihood"]["y"]]
    k = diagnostics.pareto_k(idata)
    return [torch.tensor(value.values.copy()) for value in found], k.k, diagnostics.loo(idata).elpd


@call
def arviz_of_an_ensemble(s):
    model, other = s.model(), s.model().to(s.rest_at)
    ensemble = pn.Ensemble([(model, s.guide()), (other, guides.MeanField(other))])
    idata = pn.to_arviz(model, ensemble, s.data(), num_samples=4, seed=1)
    return torch.tensor(idata["posterior"]["scale"].values.copy())


@call
def fit(s):
    model, guide = s.model(), s.guide()
    history = pn.fit(
        model,
        guide,
        s.data(),
        epochs=3,
        batch_size=7,
        optimization=pn.Optimization(
            # Fused on a CPU alone, by default: roundings would differ, which Adam makes steps of
            # where a gradient is zero (biases before batch statistics).
            optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-3, fused=False),
            gradient_clip_norm=0.5,
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        ),
        augment=pn.datasets.PadCropFlip(1),
        validation=pn.Validation(s.data(), num_samples=3),
        fabric=make_fabric(s.model_at),
        seed=3,
        progress=False,
    )
    epochs = [(epoch.loss, epoch.validation_nll) for epoch in history.epochs]
    return epochs, list(model.parameters()), list(guide.parameters())


@call
def bank(s):
    found = s.bank()
    size = found.effective_batch_size().estimate
    return found.mean, found.scale, size


@call
def population(s):
    model = s.model()
    pn.estimate_population_statistics(model, s.data()[0] + 1, batch_size=5)
    return model.network.reference_statistics()


@call
def noise(s):
    found, shape = s.bank(), diagnostics.input_shape(s.model(), s.data()[0])
    laws = diagnostics.noise_law_test(found), diagnostics.noise_law_test(found, shape=shape)
    return diagnostics.moment_batch_sizes(found), *laws


@call
def disturbance(s):
    return diagnostics.normalization_disturbance(s.model().network, s.data()[0], [6], num_draws=4)


@call
def shift_and_gap(s):
    return (
        diagnostics.estimation_shift(s.model().network, s.data()[0]),
        diagnostics.mode_gap(s.model(), s.data(), 6),
    )


@call
def agreement(s):
    model, guide = s.model(), s.guide()
    one = guide.draw(model, 10, seed=1) if hasattr(guide, "draw") else s.bank().draw(model, 10)
    other = s.bank().draw(model, 20)
    return diagnostics.compare_draws(*map(diagnostics.latent_vectors, (one, other)))


@call
def simulation(s):
    names = "Group", "Standard", "Normal"
    guide = s.guide(*names)
    return diagnostics.simulation_based_calibration(
        s.model(*names), s.data("Normal")[0], lambda x, y: guide, 2, 5, seed=1
    ).shift


@call
def conversion(s):
    found = []
    for normalizer in (pn.normalizers.Weight(), pn.normalizers.Analytic()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to(s.model_at)
        net(s.data()[0].to(s.model_at))
        converted = pn.convert(net, normalizer, example_input=s.rest(s.data()[0]))
        found.append(converted.eval()(s.data()[0].to(s.model_at)))
    return found


@call
def starts(s):
    networks = [s.model("Weight").network, s.model("Weight").network, s.model("Analytic").network]
    pn.data_dependent_start(networks[0], s.data()[0])
    pn.analytic_start(networks[1], s.data()[0])
    pn.data_dependent_start(networks[2], s.data()[0])
    return [network.reference_statistics() for network in networks]


@call
def calibration(s):
    x, y = s.data()
    prediction = pn.predict(s.model(), s.guide(), x, 4, seed=1)
    y = s.rest(prediction.mean.argmax(-1))
    y[::4] = (y[::4] + 1) % 3  # some predicted wrong, so that there is a temperature
    temperature = pn.diagnostics.fit_temperature(prediction, y)
    return temperature, fields(prediction.tempered(temperature))


@call
def noise_width(s):
    names = "Group", "Standard", "Normal"
    x, y = s.data("Normal")
    prediction = pn.predict(s.model(*names), s.guide(*names), x, 4, seed=1)
    found = pn.diagnostics.fit_temperature(prediction, s.rest(y))
    return found, prediction.tempered(found).variance


@call
def laplace(s):
    s.seeded()
    return fields(baselines.fit_laplace(s.model(), s.data()).predict(s.data(), 5))


@call
def jackknife(s):
    x, y = s.data("Normal")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 1))
    network = pn.LatentNetwork(net, plain=True)
    model = pn.NormalizationModel(network, pn.likelihoods.Normal(), 24).to(s.model_at)
    found = baselines.fit_jackknife(model, (x, y[:, :1]))
    intervals = found.intervals(x, 0.9)
    return intervals.lower, intervals.upper, intervals.coverage(s.rest(y[:, :1]))


@call
def dropout(s):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Dropout(), nn.Flatten())
    net.append(nn.Linear(24, 3))
    model = pn.NormalizationModel(pn.convert(net), pn.likelihoods.Categorical(), 24)
    return fields(baselines.predict_dropout(model.to(s.model_at), s.data(), 4, seed=1))


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a result, in order."""
    if isinstance(value, Tensor):
        yield from value.detach().cpu().double().flatten().tolist()
    elif isinstance(value, (bool, int, float)):
        yield float(value)
    elif isinstance(value, (str, Enum, type(None))):
        return
    elif is_dataclass(value):
        yield from numbers({k: v for k, v in vars(value).items() if k != "space"})
    elif isinstance(value, Mapping):
        yield from numbers([*value.values()])
    else:
        for part in value:
            yield from numbers(part)


def check(name: str, data_at: torch.device, rest_at: torch.device) -> None:
    expected, found = (
        torch.tensor([*numbers(CALLS[name](setup))], dtype=torch.double)
        for setup in (Setup(CPU, CPU, CPU), Setup(DEVICE, data_at, rest_at))
    )
    assert len(expected)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("at", [CPU, DEVICE], ids=["all else on the CPU", "all there"])
@pytest.mark.parametrize("name", CALLS)
def test_as_on_the_cpu(simulated, name, at):
    check(name, at, at)


@pytest.mark.slow
@pytest.mark.parametrize("data_at", [CPU, DEVICE], ids=["data on the CPU", "data there"])
@pytest.mark.parametrize("name", CALLS)
def test_data_and_posterior_apart(simulated, name, data_at):
    check(name, data_at, DEVICE if data_at == CPU else CPU)
