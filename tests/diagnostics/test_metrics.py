"""Metrics against loops over examples, classes and bins written out by hand, and scikit-learn."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import Delta
from sklearn.metrics import root_mean_squared_error
from torch import Tensor

import pyronorm as pn
from pyronorm.diagnostics import evaluate, regression_metrics
from pyronorm.errors import DataError, PyronormError, ShapeError
from tests.nets import mlp
from tests.stats.test_classification import by_hand


@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_regression_metrics_is_the_root_mean_squared_error(shape: tuple[int, ...]) -> None:
    mean, y = torch.randn(shape), 2 + torch.randn(shape)
    total = sum(
        (a - b) ** 2 for a, b in zip(mean.flatten().tolist(), y.flatten().tolist(), strict=True)
    )
    found = regression_metrics(mean, y)
    assert found == pytest.approx({"rmse": math.sqrt(total / mean.numel())}, rel=1e-5)
    assert found["rmse"] == pytest.approx(
        root_mean_squared_error(y.flatten(), mean.flatten()), rel=1e-5
    )


@pytest.mark.parametrize(("mean", "y"), [((4, 1), (4,)), ((4,), (5,)), ((2, 3), (3, 2))])
def test_regression_shapes_that_do_not_fit(mean: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as error:
        regression_metrics(torch.zeros(mean), torch.zeros(y))
    assert str(mean) in str(error.value)
    assert str(y) in str(error.value)


# evaluate


def make_model(likelihood: pn.likelihoods.Likelihood, outputs: int) -> pn.NormalizationModel:
    network = pn.convert(mlp(5, 6, outputs))
    pn.estimate_population_statistics(network, 1 + 2 * torch.randn(200, 5))
    return pn.NormalizationModel(network, likelihood, num_data=40)


class GivenDraws:
    """A guide of a user's own that always gives the same draws, far from each other."""

    def __init__(self, model: pn.NormalizationModel, draws: int) -> None:
        channels = model.space.num_channels
        self.shift = torch.randn(draws, channels)
        self.scale = (0.7 * torch.randn(draws, channels)).exp()

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("shift", Delta(self.shift[:, None], event_dim=1))
        pyro.sample("scale", Delta(self.scale[:, None], event_dim=1))

    def outputs(self, model: pn.NormalizationModel, x: Tensor) -> Tensor:
        """The network once per draw, shape (sample, batch, *out)."""
        network = model.network.eval()
        with torch.no_grad():
            pairs = zip(self.shift, self.scale, strict=True)
            return torch.stack([network(x, shift, scale) for shift, scale in pairs])


def test_evaluate_categorical_averages_probabilities_over_draws() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    guide = GivenDraws(model, 7)
    x, y = 1 + 2 * torch.randn(40, 5), torch.randint(0, 3, (40,))
    found = evaluate(model, pn.PyroGuide(guide), (x, y), num_samples=7)
    p = guide.outputs(model, x).double().softmax(-1).mean(0)
    assert found == pytest.approx(by_hand(p.numpy(), y.numpy()), rel=1e-4)


def test_evaluate_takes_loaders_and_small_batches() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    guide = GivenDraws(model, 4)
    x, y = torch.randn(23, 5), torch.randint(0, 3, (23,))
    p = guide.outputs(model, x).double().softmax(-1).mean(0)
    expected = pytest.approx(by_hand(p.numpy(), y.numpy()), rel=1e-4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    assert evaluate(model, pn.PyroGuide(guide), loader, 4) == expected
    assert evaluate(model, pn.PyroGuide(guide), (x, y), 4, batch_size=9) == expected
    assert evaluate(model, pn.PyroGuide(guide), [(x[:5], y[:5]), (x[5:], y[5:])], 4) == expected


@pytest.mark.parametrize("outputs", [1, 3])
def test_evaluate_bernoulli_is_two_classes_per_value(outputs: int) -> None:
    model = make_model(pn.likelihoods.Bernoulli(), outputs)
    guide = GivenDraws(model, 5)
    x, y = torch.randn(30, 5), (torch.rand(30, outputs) < 0.4).float()
    found = evaluate(model, pn.PyroGuide(guide), (x, y), num_samples=5)
    one = guide.outputs(model, x).double().sigmoid().mean(0).flatten()
    p = torch.stack([1 - one, one], -1)
    expected = by_hand(p.numpy(), y.flatten().long().numpy())
    if outputs > 1:  # labels of one example share the draw
        expected["nll_per_position"] = expected["nll"]
        output = guide.outputs(model, x).double()
        density = torch.distributions.Bernoulli(logits=output).log_prob(y).sum(-1).exp()
        expected["nll"] = -float(density.mean(0).log().mean())
    assert found == pytest.approx(expected, rel=1e-4)


def test_evaluate_normal_is_a_mixture_of_densities() -> None:
    model = make_model(pn.likelihoods.Normal(torch.tensor([0.5, 2.0])), 2)
    guide = GivenDraws(model, 6)
    x, y = torch.randn(30, 5), torch.randn(30, 2)
    found = evaluate(model, pn.PyroGuide(guide), (x, y), num_samples=6)
    f = guide.outputs(model, x)
    nll, squares = 0.0, 0.0
    for i in range(30):
        density = 0.0
        for s in range(6):
            density_s = 1.0
            for k, sigma in enumerate((0.5, 2.0)):
                z = (float(y[i, k]) - float(f[s, i, k])) / sigma
                density_s *= math.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))
            density += density_s / 6
        nll -= math.log(density) / 30
        squares += sum((float(f[:, i, k].mean()) - float(y[i, k])) ** 2 for k in (0, 1))
    assert (found["nll"], found["rmse"]) == pytest.approx((nll, math.sqrt(squares / 60)), rel=1e-4)
    same = model.likelihood.predict(f).metrics(y)
    assert list(found) == list(same)
    assert found == pytest.approx(same, rel=1e-4)


def test_evaluate_calls_a_guide_as_fit_does() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    given = GivenDraws(model, 2)

    def guide(x: Tensor, y: Tensor) -> None:
        given(x, y)

    data = torch.randn(20, 5), torch.zeros(20, dtype=torch.long)
    assert evaluate(model, pn.PyroGuide(guide), data, 2) == evaluate(
        model, pn.PyroGuide(given), data, 2
    )


def test_evaluate_changes_nothing() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = torch.randn(20, 5), torch.zeros(20, dtype=torch.long)
    evaluate(model, pn.guides.BatchNoise(model, 6), data, 3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_evaluate_needs_pairs_and_data() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    guide = pn.guides.Point(model)
    with pytest.raises(PyronormError, match=r"pairs \(x, y\)"):
        evaluate(model, guide, torch.randn(4, 5))
    with pytest.raises(DataError, match="no batch"):
        evaluate(model, guide, [])


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (pn.likelihoods.Categorical, 3, torch.zeros(19, dtype=torch.long)),
        (pn.likelihoods.Bernoulli, 3, torch.zeros(20)),
        (pn.likelihoods.Normal, 1, torch.zeros(20)),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_evaluate_refuses_shapes_that_do_not_fit(likelihood: type, outputs: int, y: Tensor) -> None:
    model = make_model(likelihood(), outputs)
    with pytest.raises(ShapeError):
        evaluate(model, pn.guides.Point(model), (torch.randn(20, 5), y), 2)


def test_evaluate_refuses_bernoulli_data_between_0_and_1() -> None:
    model = make_model(pn.likelihoods.Bernoulli(), 2)
    with pytest.raises(DataError):
        evaluate(model, pn.guides.Point(model), (torch.randn(9, 5), torch.full((9, 2), 0.5)), 2)


def test_after_calibration_on_other_data() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    guide = pn.guides.MeanField(model)
    data, other = ((torch.randn(n, 5), torch.randint(3, (n,))) for n in (40, 200))
    found = evaluate(model, guide, data, 4, calibrate_on=other, seed=0)
    raw = evaluate(model, guide, data, 4, seed=0)
    assert {name: found[name] for name in raw} == raw
    held_out = pn.predict(model, guide, other[0], 4, seed=0)
    temperature = pn.diagnostics.fit_temperature(held_out, other[1])
    assert found["temperature"] == pytest.approx(temperature, rel=1e-4)
    expected = pn.predict(model, guide, data[0], 4, seed=0).tempered(temperature).metrics(data[1])
    for name, value in expected.items():
        assert found[f"calibrated_{name}"] == pytest.approx(value, rel=1e-4)
    assert found.keys() == {*raw, *(f"calibrated_{name}" for name in raw), "temperature"}
    with pytest.raises(DataError, match="calibrate_on: needs pairs"):
        evaluate(model, guide, data, 4, calibrate_on=other[0])


def test_calibration_of_an_ensemble_and_of_counts() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    ensemble = pn.Ensemble([(model, pn.guides.Point(model)), (model, pn.guides.MeanField(model))])
    data = torch.randn(60, 5), torch.randint(3, (60,))
    assert evaluate(model, ensemble, data, 2, calibrate_on=data)["temperature"] > 1
    counts = make_model(pn.likelihoods.Poisson(), 1)
    data = torch.randn(20, 5), torch.ones(20, 1)
    with pytest.raises(PyronormError, match="Poisson has none"):
        evaluate(counts, pn.guides.Point(counts), data, 1, calibrate_on=data)


def test_an_evaluation_is_a_dictionary_a_line_and_a_table() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    x = 1 + 2 * torch.randn(200, 5)
    data = x, pn.predict(model, pn.guides.Point(model), x).sample(seed=0)[0]
    noisy = evaluate(model, pn.guides.BatchNoise(model, 9), data, 4, calibrate_on=data, seed=0)
    assert noisy.note == ""
    table = noisy.to_dataframe()
    assert table.loc["nll", "value"] == noisy["nll"]
    assert table.loc["nll", "calibrated"] == noisy["calibrated_nll"]
    assert math.isnan(table.loc["temperature", "calibrated"])
    point = evaluate(model, pn.guides.Point(model), data)
    assert "mutual information is identically 0" in repr(point)
    assert dict(point) == evaluate(model, pn.guides.Point(model), data)
    assert list(point.to_dataframe()) == ["value"]
    assert pn.predict(model, pn.guides.Point(model), x).mutual_information.max() < 1e-6  # rounding
