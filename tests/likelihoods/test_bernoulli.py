"""Oracles: torch's binary cross entropy, scipy's entropies."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from pyronorm.errors import DataError, ShapeError
from pyronorm.likelihoods import Bernoulli, Categorical

BATCH = 5
shapes = pytest.mark.parametrize("out", [(), (3,), (2, 4, 3)], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
sample_axes = pytest.mark.parametrize("samples", [(), (2,), (6, 2)], ids=str)


def outputs(samples, out, dtype=torch.float64):
    return torch.randn(*samples, BATCH, *out, dtype=dtype) * 3


@shapes
@dtypes
@sample_axes
def test_log_prob_is_cross_entropy_per_example(samples, out, dtype):
    output, y = outputs(samples, out, dtype), torch.randint(2, (BATCH, *out)).to(dtype)
    log_prob = Bernoulli().distribution(output, len(samples)).log_prob(y)
    y = y.expand_as(output)
    expected = -F.binary_cross_entropy_with_logits(output, y, reduction="none")
    torch.testing.assert_close(log_prob, expected.reshape(*samples, BATCH, -1).sum(-1))
    assert log_prob.dtype == dtype


@shapes
@sample_axes
def test_expected_is_the_sigmoid(samples, out):
    output = outputs(samples, out)
    result = Bernoulli().expected(output, len(samples))
    np.testing.assert_allclose(result, scipy.special.expit(output.numpy()), rtol=1e-12)


def binary_entropy(p):
    return scipy.stats.entropy(np.stack([p, 1 - p]), axis=0)


@shapes
@dtypes
def test_summary_matches_brute_force(out, dtype):
    output = outputs((7,), out, dtype)
    p = scipy.special.expit(output.double().numpy())
    mean = p.mean(0)
    summary = Bernoulli().predict(output)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9}
    np.testing.assert_allclose(summary.mean, mean, **tolerance)
    variance = mean * (1 - mean) ** 2 + (1 - mean) * mean**2  # E over y = 1, y = 0
    np.testing.assert_allclose(summary.variance, variance, **tolerance)
    np.testing.assert_allclose(summary.entropy, binary_entropy(mean), **tolerance)
    pair, mean_pair = np.stack([p, 1 - p]), np.stack([mean, 1 - mean])[:, None]
    information = scipy.stats.entropy(pair, mean_pair, axis=0).mean(0)  # mean KL to the mean
    np.testing.assert_allclose(summary.mutual_information, information, **tolerance)


def test_summary_variance_is_that_of_draws():
    """Total variance by Monte Carlo over latents and y, within five standard errors (6e-7)."""
    output = outputs((9,), (3,))
    y = torch.bernoulli(output.sigmoid().expand(20_000, -1, -1, -1)).flatten(0, 1)
    summary = Bernoulli().predict(output)
    square = (y - summary.mean).square()
    error = square.std(0) / math.sqrt(len(y))
    assert ((square.mean(0) - summary.variance).abs() <= 5 * error).all()


def test_agrees_with_two_classes():
    output = outputs((4,), ())
    a = Bernoulli().predict(output)
    b = Categorical().predict(torch.stack([torch.zeros_like(output), output], -1))
    torch.testing.assert_close(a.mean, b.mean[:, 1])
    torch.testing.assert_close(a.entropy, b.entropy)
    torch.testing.assert_close(a.mutual_information, b.mutual_information)


@dtypes
def test_saturated_logits_stay_finite(dtype):
    summary = Bernoulli().predict(torch.tensor([[500.0, -500.0], [500.0, 500.0]], dtype=dtype))
    log2 = math.log(2)
    torch.testing.assert_close(summary.mean, torch.tensor([1.0, 0.5], dtype=dtype))
    torch.testing.assert_close(summary.entropy, torch.tensor([0.0, log2], dtype=dtype))
    torch.testing.assert_close(summary.mutual_information, torch.tensor([0.0, log2], dtype=dtype))


def test_equal_draws_carry_no_information():
    summary = Bernoulli().predict(outputs((1,), (3,), torch.float32).expand(6, -1, -1))
    torch.testing.assert_close(summary.mutual_information, torch.zeros(BATCH, 3), rtol=0, atol=1e-6)
    assert (summary.mutual_information >= 0).all()


@pytest.mark.parametrize("y", [[0.0, 0.5], [-1.0, 1.0], [0.0, 2.0], [0.0, math.inf]])
def test_values_other_than_0_and_1(y):
    with pytest.raises(DataError, match=r"^Bernoulli: y has values outside of the support"):
        Bernoulli().check_data(torch.tensor(y), torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_labels_of_any_kind(dtype):
    y, output = torch.tensor([1, 0, 1], dtype=dtype), torch.tensor([0.5, -1.0, 2.0])
    log_prob = Bernoulli().log_prob(output, y)
    expected = F.logsigmoid(output * torch.tensor([1.0, -1.0, 1.0]))
    torch.testing.assert_close(log_prob, expected.to(log_prob.dtype))


def test_output_without_batch():
    with pytest.raises(ShapeError, match=r"^Bernoulli: expected .*\(batch, \.\.\.\), got \(\)"):
        Bernoulli().distribution(torch.tensor(0.3))
