"""Metrics against loops over examples, classes and bins written out by hand, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import Delta
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error
from torch import Tensor

import pyronorm as pn
from pyronorm.diagnostics import classification_metrics, evaluate, regression_metrics
from pyronorm.errors import DataError, OptionError, PyronormError, ShapeError
from tests.nets import mlp


def by_hand(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> dict[str, float]:
    """The four metrics by their definitions, example by example."""
    n, classes = probabilities.shape
    right, nll, brier = 0, 0.0, 0.0
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for p, truth in zip(probabilities.tolist(), y.tolist(), strict=True):
        best = max(range(classes), key=lambda k: p[k])
        right += best == truth
        nll -= math.log(p[truth])
        brier += sum((p[k] - (k == truth)) ** 2 for k in range(classes))
        members[min(int(p[best] * bins), bins - 1)].append((p[best], best == truth))
    ece = 0.0
    for inside in members:
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(ok for _, ok in inside) / len(inside)
            ece += len(inside) / n * abs(accuracy - confidence)
    return {"accuracy": right / n, "nll": nll / n, "ece": ece, "brier": brier / n}


def probabilities_and_classes(n: int, classes: int, dtype: torch.dtype = torch.float32):
    # Overconfident and sharp, so that most bins above 1 / classes have members.
    logits = 3 * torch.randn(n, classes, dtype=dtype)
    y = torch.distributions.Categorical(logits=logits / 2).sample()
    return logits.softmax(-1), y


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classification_metrics_are_their_definitions(classes: int, dtype: torch.dtype) -> None:
    p, y = probabilities_and_classes(301, classes, dtype)
    found = classification_metrics(p, y)
    assert list(found) == ["accuracy", "nll", "ece", "brier"]
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx(by_hand(p.double().numpy(), y.numpy()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(-1)))
    exact = p.double() / p.double().sum(-1, keepdim=True)  # scikit-learn insists
    assert found["nll"] == pytest.approx(log_loss(y, exact, labels=range(classes)), rel=1e-5)


def test_known_cases() -> None:
    # Confidences .7 (right), .6 (wrong) and .5 (right), in three different bins of width 1/15.
    p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5]])
    found = classification_metrics(p, torch.tensor([0, 2, 2]))
    assert found == pytest.approx(
        {
            "accuracy": 2 / 3,
            "nll": -(math.log(0.7) + math.log(0.1) + math.log(0.5)) / 3,
            "ece": (0.3 + 0.6 + 0.5) / 3,
            "brier": (0.09 + 0.04 + 0.01 + 0.09 + 0.36 + 0.81 + 0.0625 + 0.0625 + 0.25) / 3,
        },
        rel=1e-5,
    )


def test_examples_in_one_bin_are_averaged_before_the_difference() -> None:
    # .68 wrong and .72 right share [10/15, 11/15): |1/2 - .70|, not (.68 + .28) / 2.
    p = torch.tensor([[0.68, 0.32], [0.72, 0.28]])
    assert classification_metrics(p, torch.tensor([1, 0]))["ece"] == pytest.approx(0.2, abs=1e-6)


def test_uniform_predictions() -> None:
    classes = 4
    y = torch.arange(classes).repeat(5)
    found = classification_metrics(torch.full((20, classes), 1 / classes), y)
    assert found == pytest.approx(
        {"accuracy": 0.25, "nll": math.log(classes), "ece": 0.0, "brier": 1 - 1 / classes}
    )


def test_certain_predictions() -> None:
    p, y = torch.eye(3), torch.arange(3)
    right = {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
    assert classification_metrics(p, y) == pytest.approx(right, abs=1e-6)
    wrong = classification_metrics(p, y.roll(1))
    # A probability of exactly 0 counts as the smallest positive number, so that the mean stays finite.
    tiny = -math.log(torch.finfo(torch.float32).tiny)
    assert wrong == pytest.approx({"accuracy": 0.0, "nll": tiny, "ece": 1.0, "brier": 2.0})


def test_dense_output_counts_every_position() -> None:
    p, y = probabilities_and_classes(2 * 3 * 5, 4)
    dense = classification_metrics(p.reshape(2, 3, 5, 4), y.reshape(2, 3, 5))
    assert dense == pytest.approx(by_hand(p.double().numpy(), y.numpy()), rel=1e-5)


@pytest.mark.parametrize(
    ("p", "y"), [((6, 3), (5,)), ((6, 3), (6, 1)), ((2, 3, 4), (2, 4)), ((4, 4), (4, 4))]
)
@pytest.mark.usefixtures("unchecked")
def test_classification_shapes_that_do_not_fit(p: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"need y of\s+shape") as error:
        classification_metrics(torch.full(p, 0.25), torch.zeros(y, dtype=torch.long))
    assert str(p) in str(error.value)
    assert str(p[:-1]) in str(error.value)
    assert str(y) in str(error.value)


def test_confidence_of_one_belongs_to_the_last_bin() -> None:
    p = torch.tensor([[1.0, 0.0], [0.95, 0.05]])  # wrong and right, both in [14/15, 1]
    assert classification_metrics(p, torch.tensor([1, 0]))["ece"] == pytest.approx(0.475)


def test_rounding_above_one_does_not_change_the_calibration_error() -> None:
    p, y = torch.tensor([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0]]), torch.tensor([0, 1, 0])
    rounded = p.clone()
    rounded[2] = torch.tensor([1.0000001, 0.0])
    assert classification_metrics(rounded, y)["ece"] == pytest.approx(
        classification_metrics(p, y)["ece"], abs=1e-6
    )


@pytest.mark.parametrize(
    "p",
    [
        torch.tensor([[3.0, -1.0], [0.5, 2.0]]),  # logits
        torch.tensor([[0.7, 0.7], [0.5, 0.5]]),  # do not sum to 1
        torch.tensor([[math.nan, math.nan], [0.5, 0.5]]),
    ],
)
def test_refuses_what_is_no_probability(p: Tensor) -> None:
    with pytest.raises(PyronormError):
        classification_metrics(p, torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", [-1, 2])
def test_refuses_classes_out_of_range(bad: int) -> None:
    with pytest.raises(DataError):
        classification_metrics(torch.full((3, 2), 0.5), torch.tensor([0, bad, 1]))


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
    found = evaluate(model, guide, (x, y), num_samples=7)
    p = guide.outputs(model, x).double().softmax(-1).mean(0)
    assert found == pytest.approx(by_hand(p.numpy(), y.numpy()), rel=1e-4)


def test_evaluate_takes_loaders_and_small_batches() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    guide = GivenDraws(model, 4)
    x, y = torch.randn(23, 5), torch.randint(0, 3, (23,))
    p = guide.outputs(model, x).double().softmax(-1).mean(0)
    expected = pytest.approx(by_hand(p.numpy(), y.numpy()), rel=1e-4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    assert evaluate(model, guide, loader, 4) == expected
    assert evaluate(model, guide, (x, y), 4, batch_size=9) == expected
    assert evaluate(model, guide, [(x[:5], y[:5]), (x[5:], y[5:])], 4) == expected


@pytest.mark.parametrize("outputs", [1, 3])
def test_evaluate_bernoulli_is_two_classes_per_value(outputs: int) -> None:
    model = make_model(pn.likelihoods.Bernoulli(), outputs)
    guide = GivenDraws(model, 5)
    x, y = torch.randn(30, 5), (torch.rand(30, outputs) < 0.4).float()
    found = evaluate(model, guide, (x, y), num_samples=5)
    one = guide.outputs(model, x).double().sigmoid().mean(0).flatten()
    p = torch.stack([1 - one, one], -1)
    assert found == pytest.approx(by_hand(p.numpy(), y.flatten().long().numpy()), rel=1e-4)


def test_evaluate_normal_is_a_mixture_of_densities() -> None:
    model = make_model(pn.likelihoods.Normal(torch.tensor([0.5, 2.0])), 2)
    guide = GivenDraws(model, 6)
    x, y = torch.randn(30, 5), torch.randn(30, 2)
    found = evaluate(model, guide, (x, y), num_samples=6)
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
    assert found == pytest.approx({"nll": nll, "rmse": math.sqrt(squares / 60)}, rel=1e-4)


def test_evaluate_calls_a_guide_as_fit_does() -> None:
    model = make_model(pn.likelihoods.Categorical(), 3)
    given = GivenDraws(model, 2)

    def guide(x: Tensor, y: Tensor) -> None:
        given(x, y)

    data = torch.randn(20, 5), torch.zeros(20, dtype=torch.long)
    assert evaluate(model, guide, data, 2) == evaluate(model, given, data, 2)


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


class Poisson(pn.likelihoods.Likelihood):
    """A user's own likelihood."""

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> dist.Independent:
        return dist.Poisson(output.exp()).to_event(output.ndim - num_sample_dims - 1)


def test_evaluate_names_a_likelihood_it_has_no_metrics_for() -> None:
    model = make_model(Poisson(), 1)
    with pytest.raises(OptionError, match=r"Poisson.*predict\(\)"):
        evaluate(model, pn.guides.Point(model), (torch.randn(9, 5), torch.ones(9, 1)), 2)


def test_evaluate_refuses_bernoulli_data_between_0_and_1() -> None:
    model = make_model(pn.likelihoods.Bernoulli(), 2)
    with pytest.raises(DataError):
        evaluate(model, pn.guides.Point(model), (torch.randn(9, 5), torch.full((9, 2), 0.5)), 2)
