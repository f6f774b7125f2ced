"""A likelihood made of a function of the output."""

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import Categorical, Likelihood, Normal

BATCH = 5


@pytest.mark.parametrize("samples", [(), (3,), (3, 2)], ids=str)
@pytest.mark.parametrize("out", [(), (4,), (4, 2)], ids=str)
def test_event_axes_are_found(samples, out):
    likelihood = Likelihood.of(lambda output: dist.Normal(output, 0.7))
    output, y = torch.randn(*samples, BATCH, *out), torch.randn(BATCH, *out)
    n = len(samples)
    torch.testing.assert_close(
        likelihood.log_prob(output, y, n), Normal(0.7).log_prob(output, y, n)
    )


def test_axes_counted_from_the_last():
    likelihood = Likelihood.of(lambda output: dist.Categorical(logits=output.movedim(-3, -1)))
    output, y = torch.randn(6, BATCH, 3, 4, 2), torch.randint(3, (BATCH, 4, 2))
    theirs = Categorical()
    torch.testing.assert_close(likelihood.log_prob(output, y, 1), theirs.log_prob(output, y, 1))
    torch.testing.assert_close(likelihood.predict(output).entropy, theirs.predict(output).entropy)


def test_a_distribution_of_vectors_stays_one():
    likelihood = Likelihood.of(lambda output: dist.Dirichlet(output.exp()))
    found = likelihood.distribution(torch.randn(6, BATCH, 4, 3), 1)
    assert (found.batch_shape, found.event_shape) == ((6, BATCH), (4, 3))


@pytest.mark.parametrize("wrong", [dist.Normal, 3, None])
@pytest.mark.usefixtures("unchecked")
def test_no_function(wrong):
    with pytest.raises(
        OptionError, match=r"^Likelihood.of: (expected|function must be) a function"
    ):
        Likelihood.of(wrong)


def test_a_function_of_something_else():
    likelihood = Likelihood.of(lambda output: output)
    with pytest.raises(OptionError, match=r"must return a distribution of pyro.*, got Tensor"):
        likelihood.distribution(torch.zeros(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda output: dist.Normal(0.0, 1.0),
        lambda output: dist.Normal(output.mean(1), 1.0),  # the batch, where there are samples
        lambda output: dist.Normal(output, 1.0).to_event(2),
    ],
)
def test_a_batch_shape_that_is_not_the_outputs(function):
    with pytest.raises(ShapeError, match=r"batch shape that begins with \(6, 5\)"):
        Likelihood.of(function).distribution(torch.zeros(6, 5, 7), 1).log_prob(torch.zeros(5))
