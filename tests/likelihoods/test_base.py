"""Refusals, and the contract of every likelihood: one log density per example, nothing broadcast."""

import copy
import dataclasses
import math

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import DataError, ShapeError
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Likelihood,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
    per_example,
)
from pyronorm.likelihoods.base import check_axes


class Own(Likelihood):
    """Waiting times with the log rate as output: a likelihood of a user."""

    def distribution(self, output, num_sample_dims=0):
        return per_example(dist.Exponential(output.exp()), num_sample_dims)


# likelihood, out, event: shapes per example
CASES = {
    "categorical": (Categorical(), (3,), ()),
    "categorical, dense": (Categorical(), (3, 4, 2), (4, 2)),
    "bernoulli": (Bernoulli(), (), ()),
    "bernoulli, labels": (Bernoulli(), (3,), (3,)),
    "normal": (Normal(0.7), (), ()),
    "normal, dense": (Normal(0.7), (2, 4, 3), (2, 4, 3)),
    "poisson": (Poisson(), (4,), (4,)),
    "negative binomial": (NegativeBinomial(1.5), (2, 3), (2, 3)),
    "student": (StudentT(3.0, 0.5, learned=True), (3,), (3,)),
    "heteroscedastic": (HeteroscedasticNormal(), (2,), ()),
    "heteroscedastic, dense": (HeteroscedasticNormal(0.1), (2, 4, 3), (4, 3)),
    "multivariate": (MultivariateNormal(torch.ones(3), torch.ones(3, 2)), (3,), (3,)),
    "ordinal": (Ordinal(4), (), ()),
    "ordinal, dense": (Ordinal(2, learned=False), (4, 3), (4, 3)),
    "function": (Likelihood.of(lambda output: dist.Laplace(output, 0.5)), (4, 2), (4, 2)),
    "own": (Own(), (4,), (4,)),
}
cases = pytest.mark.parametrize(("likelihood", "out", "event"), CASES.values(), ids=CASES)
samples = pytest.mark.parametrize("samples", [(), (2,), (4, 2)], ids=str)
BATCH = 5


@cases
@samples
def test_one_log_density_per_example(likelihood, out, event, samples):
    output = torch.randn(*samples, BATCH, *out)
    d = likelihood.distribution(output, len(samples))
    assert (d.batch_shape, d.event_shape) == ((*samples, BATCH), event)
    y = d.sample().reshape(-1, BATCH, *event)[0]
    likelihood.check_data(y, output, len(samples))
    assert d.log_prob(y).shape == (*samples, BATCH)


@cases
@samples
def test_examples_are_independent(likelihood, out, event, samples):
    output = torch.randn(*samples, BATCH, *out)
    d = likelihood.distribution(output, len(samples))
    y = d.sample().reshape(-1, BATCH, *event)[0]
    for i in range(BATCH):
        one = likelihood.distribution(output.narrow(len(samples), i, 1), len(samples))
        torch.testing.assert_close(one.log_prob(y[i : i + 1])[..., 0], d.log_prob(y)[..., i])


@cases
@samples
@pytest.mark.parametrize("change", ["batch of one", "batch", "axis", "no batch"])
def test_nothing_is_broadcast(likelihood, out, event, samples, change):
    shape = {
        "batch of one": (1, *event),
        "batch": (BATCH + 1, *event),
        "axis": (BATCH, *event, 1),
        "no batch": event,
    }[change]
    output = torch.zeros(*samples, BATCH, *out)
    name = type(likelihood).__name__
    match = rf"^{name}: .* describes y of shape \({BATCH},.*\), got y of shape \(.*\)\.$"
    with pytest.raises(ShapeError, match=match):
        likelihood.check_data(torch.zeros(shape), output, len(samples))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Normal(), Poisson()])
@pytest.mark.parametrize(("y", "output"), [((5,), (5, 1)), ((5, 1), (5,)), ((3, 5), (5, 3))])
def test_column_against_vector_is_refused(likelihood, y, output):
    with pytest.raises(ShapeError, match=rf"output of shape \({output[0]}.* y of shape \({y[0]}"):
        likelihood.check_data(torch.zeros(y), torch.zeros(output))


@cases
def test_data_with_sample_axes_is_refused(likelihood, out, event):
    with pytest.raises(ShapeError, match="describes y of shape"):
        likelihood.check_data(torch.zeros(2, BATCH, *event), torch.zeros(2, BATCH, *out), 1)


IMPOSSIBLE = {
    "categorical": (-1, 3),
    "bernoulli": (-1.0, 0.5, 2.0, math.inf),
    "normal": (math.inf,),
    "poisson": (-1.0, 1.5, math.inf),
    "negativebinomial": (-1.0, 1.5, math.inf),
    "studentt": (math.inf,),
    "heteroscedasticnormal": (-math.inf,),
    "multivariatenormal": (math.inf,),
    "ordinal": (-1, 4),
    "function": (math.inf,),
    "own": (-1.0, math.inf),
}
INTEGERS = ("Categorical", "Ordinal")
REALS = ("Normal", "StudentT", "HeteroscedasticNormal", "MultivariateNormal", "Function", "Own")


@cases
@samples
def test_impossible_values(likelihood, out, event, samples):
    output = torch.zeros(*samples, BATCH, *out)
    name = type(likelihood).__name__
    for value in IMPOSSIBLE[name.lower()]:
        y = torch.zeros(BATCH, *event, dtype=torch.long if name in INTEGERS else None)
        y.view(-1)[-1] = value  # one bad value is enough
        match = rf"^{name}: y has values outside of the support, .* range from .* to .*\.$"
        with pytest.raises(DataError, match=match):
            likelihood.check_data(y, output, len(samples))
        likelihood.check_data(y, output, len(samples), values=False)


@cases
def test_kinds_of_numbers(likelihood, out, event):
    """Classes are integers, real values are not, and what is counted may be either."""
    name = type(likelihood).__name__
    for dtype in (torch.float32, torch.long):
        y = torch.zeros(BATCH, *event, dtype=dtype)
        if name in (INTEGERS if dtype == torch.float32 else REALS):
            with pytest.raises(DataError, match=f"y must be .*, got {dtype}"):
                likelihood.check_data(y, torch.zeros(BATCH, *out))
        else:
            likelihood.check_data(y, torch.zeros(BATCH, *out))


def test_range_in_the_message():
    with pytest.raises(DataError, match=r"range from -7 to 2\.5"):
        Bernoulli().check_data(torch.tensor([-7.0, 1.0, 2.5]), torch.zeros(3))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_data(value):
    with pytest.raises(DataError, match="not finite"):
        Normal().check_data(torch.tensor([0.5, value]), torch.zeros(2))


@pytest.mark.parametrize(
    ("shape", "num_sample_dims", "at_least"),
    [((), 0, 0), ((4,), 1, 0), ((4,), 0, 1), ((2, 4), 1, 1)],
)
def test_check_axes_refuses(shape, num_sample_dims, at_least):
    axes = "batch, class, ..." if at_least else "batch, ..."
    with pytest.raises(ShapeError) as error:
        check_axes("here", torch.zeros(shape), num_sample_dims, at_least)
    assert str(error.value) == (
        f"here: expected an output of shape ({axes}), got {shape} with {num_sample_dims} sample "
        "axes in front."
    )


@pytest.mark.parametrize(
    ("shape", "num_sample_dims", "at_least"), [((4,), 0, 0), ((4, 3), 0, 1), ((2, 6, 4, 3), 2, 1)]
)
def test_check_axes_accepts(shape, num_sample_dims, at_least):
    check_axes("here", torch.zeros(shape), num_sample_dims, at_least)


@pytest.mark.parametrize("likelihood", [case[0] for case in CASES.values()])
@pytest.mark.parametrize("num_sample_dims", [0, 1, 2])
def test_output_without_batch_is_refused(likelihood, num_sample_dims):
    with pytest.raises(ShapeError, match=rf"with {num_sample_dims} sample axes"):
        likelihood.distribution(torch.zeros([2] * num_sample_dims), num_sample_dims)


def test_prediction_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError, match="mean"):
        Normal().predict(torch.zeros(4, 3)).mean = torch.ones(3)


@cases
def test_predictions_are_finite_and_of_one_dtype(likelihood, out, event):
    for dtype in (torch.float32, torch.float64):
        likelihood.to(dtype)
        found = likelihood.predict(torch.randn(4, BATCH, *out, dtype=dtype))
        values = (found.mean, found.variance, found.entropy, found.mutual_information)
        assert all(bool(v.isfinite().all()) and v.dtype == dtype for v in values)
        assert not any(v.requires_grad for v in values)
        assert bool((found.mutual_information >= 0).all())
        y = found.sample(3, seed=1)
        assert y.shape == (3, BATCH, *event)
        assert all(math.isfinite(v) for v in found.metrics(y[0]).values())
    likelihood.float()


@cases
def test_state_dict_round_trip(likelihood, out, event):
    output = torch.randn(2, BATCH, *out)
    copied = copy.deepcopy(likelihood)
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.add_(0.3)
    copied.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(copied.expected(output, 1), likelihood.expected(output, 1))


def test_shape_of_a_distribution_that_forgot_its_events():
    class Forgetful(Likelihood):
        def distribution(self, output, num_sample_dims=0):
            return dist.Exponential(output.exp())

    match = r"Forgetful: .* must have the batch shape \(5,\), got \(5, 3\). Return .*per_example"
    with pytest.raises(ShapeError, match=match):
        Forgetful().log_prob(torch.zeros(5, 3), torch.ones(5, 3))


def test_per_example_needs_a_batch():
    with pytest.raises(ShapeError, match=r"per_example: .* got \(4,\) with 1 sample axes"):
        per_example(dist.Normal(torch.zeros(4), 1.0), 1)


def test_repr_shows_settings():
    assert repr(Normal(0.3)) == "Normal(std=0.3)"
    assert (
        repr(Normal(torch.tensor([0.3, 2.0]), learned=True)) == "Normal(std=[0.3, 2], learned=True)"
    )

    class Forgets(Normal):
        def __init__(self, option):
            super().__init__(0.3)

    assert repr(Forgets(3)) == "Forgets()"
