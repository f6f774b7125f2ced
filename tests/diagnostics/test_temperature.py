"""Temperature of classes and of noise: closed forms, stationarity, recovery."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyronorm.diagnostics import fit_temperature
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import Categorical, Normal, Prediction


def prediction(likelihood, output: Tensor) -> Prediction:
    return likelihood.predict(output)


@pytest.fixture
def logits() -> Tensor:
    return 4 * torch.randn(1, 3000, 5)


def draw_classes(logits: Tensor, temperature: float) -> Tensor:
    return torch.distributions.Categorical(logits=logits / temperature).sample()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_one_draw_is_recovered_and_optimal(logits: Tensor, temperature: float) -> None:
    y = draw_classes(logits[0], temperature)
    found = fit_temperature(prediction(Categorical(), logits), y)
    # The standard error of log T is below 3 % here.
    assert found == pytest.approx(temperature, rel=0.15)
    inverse = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits[0].double() * inverse, y)
    (slope,) = torch.autograd.grad(loss, inverse)
    assert abs(float(slope)) < 1e-4


def test_applied_to_one_draw_it_divides_the_logits(logits: Tensor) -> None:
    scaled = prediction(Categorical(), logits).tempered(2.5)
    torch.testing.assert_close(scaled.mean, (logits[0] / 2.5).softmax(-1), rtol=1e-4, atol=1e-6)
    assert float(scaled.mutual_information.max()) < 1e-5


def test_several_draws_with_positions() -> None:
    logits = 3 * torch.randn(4, 60, 3, 2)  # draw, example, class, position
    before = prediction(Categorical(), logits)
    after = before.tempered(0.5)
    expected = prediction(Categorical(), logits / 0.5)
    for name in ("mean", "variance", "entropy", "mutual_information", "samples"):
        torch.testing.assert_close(
            getattr(after, name), getattr(expected, name), rtol=1e-3, atol=1e-5
        )
    y = draw_classes(logits[0].movedim(1, -1), 1.0)
    found = fit_temperature(before, y)

    def nll(temperature: float) -> float:
        mean = before.tempered(temperature).mean.double()
        return -float(mean.gather(-1, y[..., None]).log().mean())

    assert nll(found) < min(nll(0.98 * found), nll(1.02 * found))


def test_certain_probabilities_stay_finite() -> None:
    scaled = prediction(Categorical(), torch.tensor([[[0.0, 400.0]]])).tempered(1.5)
    assert bool(scaled.mean.isfinite().all())
    torch.testing.assert_close(scaled.mean.sum(), torch.tensor(1.0))


def test_all_right_determines_no_temperature(logits: Tensor) -> None:
    found = prediction(Categorical(), logits)
    with pytest.raises(DataError, match="fit_temperature: the optimum is not between"):
        fit_temperature(found, logits[0].argmax(-1))


def test_temperature_refuses(logits: Tensor) -> None:
    found = prediction(Categorical(), logits)
    y = torch.zeros(3000, dtype=torch.long)
    with pytest.raises(
        ShapeError, match=r"describes y of shape \(3000,\), got y of shape \(2999,\)"
    ):
        fit_temperature(found, y[1:])
    with pytest.raises(DataError, match="outside of the support"):
        fit_temperature(found, y + 5)
    without = Categorical().predict(logits, keep_samples=False)
    for use in (lambda p: p.tempered(2.0), lambda p: fit_temperature(p, y)):
        with pytest.raises(OptionError, match="keep_samples=True"):
            use(without)
    missing = prediction(Categorical(ignore_index=9), logits)
    with pytest.raises(DataError, match="all values are missing"):
        fit_temperature(missing, torch.full((3000,), 9))


def test_noise_of_one_draw_is_the_root_mean_squared_error() -> None:
    f, y = torch.randn(1, 30, 2), torch.randn(30, 2)
    found = fit_temperature(prediction(Normal(0.5), f), y)
    assert 0.5 * found == pytest.approx(float((y - f[0]).square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("out", [(), (2,)])
def test_noise_of_several_draws_is_optimal(out: tuple[int, ...]) -> None:
    center = torch.randn(40, *out)
    f, y = center + 0.5 * torch.randn(5, 40, *out), center + 0.3 * torch.randn(40, *out)
    found = fit_temperature(prediction(Normal(), f), y)
    std = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    density = torch.distributions.Normal(f.double(), std).log_prob(y.double())
    (slope,) = torch.autograd.grad(density.logsumexp(0).mean(), std)
    assert abs(float(slope)) < 1e-4
    expected = f.var(0, correction=0) + found**2
    torch.testing.assert_close(prediction(Normal(), f).tempered(found).variance, expected)


def test_noise_refuses() -> None:
    found = prediction(Normal(), torch.zeros(2, 5, 1))
    with pytest.raises(ShapeError, match=r"describes y of shape \(5, 1\), got y of shape \(5,\)"):
        fit_temperature(found, torch.zeros(5))
    with pytest.raises(DataError, match="do not determine it"):
        fit_temperature(found, torch.zeros(5, 1))


def test_missing_data_are_left_out() -> None:
    logits, y = 4 * torch.randn(3, 300, 5), torch.randint(5, (300,))
    y = torch.where(torch.rand(300) < 0.4, logits[0].argmax(-1), y)
    kept = torch.rand(300) < 0.7
    missing = torch.where(kept, y, 255)
    some = prediction(Categorical(ignore_index=255), logits)
    found = fit_temperature(some, missing)
    expected = fit_temperature(prediction(Categorical(), logits[:, kept]), y[kept])
    assert found == pytest.approx(expected, rel=1e-4)
    assert some.tempered(found).metrics(missing)["accuracy"] > 0
    f, y = torch.randn(3, 300, 2), torch.randn(300, 2)
    y[~kept] = torch.nan
    found = fit_temperature(prediction(Normal(), f), y)
    expected = fit_temperature(prediction(Normal(), f[:, kept]), y[kept])
    assert found == pytest.approx(expected, rel=1e-4)
