"""Every likelihood gives on the device what it gives on the CPU, wherever the targets are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from pyronorm import likelihoods
from pyronorm.likelihoods import Likelihood
from tests.simulated_device import DEVICE

EXAMPLES, DRAWS = 9, 4
Case = tuple[Callable[[], Likelihood], tuple[int, ...], Callable[[], Tensor]]


def real(*shape: int) -> Callable[[], Tensor]:
    """Targets of which the first is missing."""

    def make() -> Tensor:
        y = torch.randn(EXAMPLES, *shape)
        y[0] = torch.nan
        return y

    return make


def counts() -> Tensor:
    return torch.randint(5, (EXAMPLES,)).float()


def classes() -> Tensor:
    return torch.randint(3, (EXAMPLES,))


CASES: dict[str, Case] = {
    "Categorical": (likelihoods.Categorical, (3,), classes),
    "Categorical, weighted": (
        lambda: likelihoods.Categorical(ignore_index=2, weight=torch.tensor([1.0, 2.0, 0.0])),
        (3,),
        classes,
    ),
    "Bernoulli": (likelihoods.Bernoulli, (2,), lambda: torch.randint(2, (EXAMPLES, 2)).float()),
    "Normal": (lambda: likelihoods.Normal(0.5, learned=True), (2,), real(2)),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal, (2,), real()),
    "MultivariateNormal": (
        lambda: likelihoods.MultivariateNormal(torch.ones(2), torch.ones(2, 1), learned=True),
        (2,),
        lambda: torch.randn(EXAMPLES, 2),
    ),
    "StudentT": (lambda: likelihoods.StudentT(learned=True), (2,), real(2)),
    "Poisson": (likelihoods.Poisson, (), counts),
    "NegativeBinomial": (lambda: likelihoods.NegativeBinomial(2.0, learned=True), (), counts),
    "Ordinal": (lambda: likelihoods.Ordinal(3), (), classes),
    "Likelihood.of": (
        lambda: Likelihood.of(lambda output: dist.Laplace(output, 1.0)),
        (),
        real(),
    ),
}


def results(likelihood: Likelihood, output: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Whatever the library asks of a likelihood."""
    prediction = likelihood.predict(output)
    sample = prediction.sample(2, seed=1)
    targets = y.to(output.device)
    distribution, filled = likelihood.objective(output[0], targets)
    found = {
        "log_prob": likelihood.log_prob(output, targets, 1),
        "objective": distribution.log_prob(filled),
        "expected": likelihood.expected(output, 1),
        "mean": prediction.mean,
        "variance": prediction.variance,
        "entropy": prediction.entropy,
        "sample": sample,
    }
    scores = prediction.metrics(y)
    return found | {name: torch.tensor(value) for name, value in scores.items()}


@pytest.mark.parametrize("y_at", ["cpu", DEVICE])
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(simulated, name, y_at):
    make, out, targets = CASES[name]
    likelihood, y = make(), targets()
    output = torch.randn(DRAWS, EXAMPLES, *out)
    expected = results(likelihood, output, y)
    there = copy.deepcopy(likelihood).to(DEVICE)
    found = results(there, output.to(DEVICE), y.to(y_at))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=key)


# The distribution is made twice, to check the shapes and for the density. torch checks the Cholesky
# decomposition, copies the rate of Student's chi-square, and numbers in a distribution of one's own.
WAITS = {"MultivariateNormal": 2, "StudentT": 2, "Likelihood.of": 2}


@pytest.mark.parametrize("name", CASES)
def test_the_host_never_waits_in_training(simulated, name):
    make, out, targets = CASES[name]
    likelihood = make().to(DEVICE)
    output = torch.randn(EXAMPLES, *out, device=DEVICE, requires_grad=True)
    y = targets().to(DEVICE)
    simulated.waits.clear()
    with pyro.validation_enabled(False):  # as after the first epoch
        likelihood.check_data(y, output, values=False)
        distribution, filled = likelihood.objective(output, y)
        distribution.log_prob(filled).sum().backward()
    assert simulated.waits.total() == WAITS.get(name, 0), simulated.waits
