"""Oracles: torch's cross entropy, scipy's entropies, brute force over classes and draws."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from pyronorm.errors import DataError, ShapeError
from pyronorm.likelihoods import Categorical

BATCH, CLASSES = 5, 3
shapes = pytest.mark.parametrize("spatial", [(), (4,), (4, 2)], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def outputs(samples, spatial, dtype=torch.float64):
    return torch.randn(*samples, BATCH, CLASSES, *spatial, dtype=dtype) * 3


@pytest.mark.parametrize("spatial", [(), (2, 3)])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 2.0])])
@pytest.mark.parametrize("ignore_index", [None, 1, -100])
def test_total_is_the_sum_of_the_objective(ignore_index, weight, spatial):
    likelihood = Categorical(ignore_index=ignore_index, weight=weight)
    y = torch.randint(3, (4, *spatial))
    y[0] = 1 if ignore_index is None else ignore_index
    for shape in ((4, 3, *spatial), (2, 4, 3, *spatial)):
        output, dims = torch.randn(shape), len(shape) - len(spatial) - 2
        for counts in (None, torch.rand(4)):
            distribution, value = likelihood.objective(output, y, dims, counts)
            found = likelihood.total(output, y, dims, counts)
            torch.testing.assert_close(found, distribution.log_prob(value).sum())


def test_total_does_not_take_torchs_ignored_class_for_a_missing_one():
    with pytest.raises((IndexError, RuntimeError)):
        Categorical().total(torch.randn(2, 3), torch.tensor([0, -100]))


@shapes
@dtypes
@pytest.mark.parametrize("samples", [(), (2,), (6, 2)], ids=str)
def test_log_prob_is_cross_entropy_per_example(samples, spatial, dtype):
    output, y = outputs(samples, spatial, dtype), torch.randint(CLASSES, (BATCH, *spatial))
    log_prob = Categorical().distribution(output, len(samples)).log_prob(y)
    flat = output.reshape(-1, BATCH, CLASSES, *spatial)
    expected = [-F.cross_entropy(f, y, reduction="none").reshape(BATCH, -1).sum(1) for f in flat]
    torch.testing.assert_close(log_prob, torch.stack(expected).reshape(*samples, BATCH))
    assert log_prob.dtype == dtype


@shapes
@pytest.mark.parametrize("samples", [(), (2,), (6, 2)], ids=str)
def test_expected_is_softmax_over_the_class_axis(samples, spatial):
    output = outputs(samples, spatial)
    expected = scipy.special.softmax(output.numpy(), axis=len(samples) + 1)
    expected = np.moveaxis(expected, len(samples) + 1, -1)
    result = Categorical().expected(output, len(samples))
    assert result.shape == (*samples, BATCH, *spatial, CLASSES)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@shapes
@dtypes
def test_summary_matches_brute_force(spatial, dtype):
    output = outputs((7,), spatial, dtype)
    p = scipy.special.softmax(np.moveaxis(output.double().numpy(), 2, -1), axis=-1)
    mean = p.mean(0)
    summary = Categorical().predict(output)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10}
    np.testing.assert_allclose(summary.mean, mean, **tolerance)
    # variance of the one-hot vector, by enumeration of the classes
    variance = sum(
        mean[..., [k]] * (np.eye(CLASSES)[k] - mean) ** 2 for k in range(CLASSES)
    )  # E over y = k
    np.testing.assert_allclose(summary.variance, variance, **tolerance)
    np.testing.assert_allclose(summary.entropy, scipy.stats.entropy(mean, axis=-1), **tolerance)
    information = scipy.stats.entropy(p, mean[None], axis=-1).mean(
        0
    )  # mean KL of a draw to the mean
    np.testing.assert_allclose(summary.mutual_information, information, **tolerance)
    assert summary.entropy.shape == summary.mutual_information.shape == (BATCH, *spatial)


def test_equal_draws_carry_no_information():
    summary = Categorical().predict(outputs((1,), (2,)).expand(6, -1, -1, -1))
    torch.testing.assert_close(summary.mutual_information, torch.zeros(BATCH, 2).double())
    assert (summary.mutual_information >= 0).all()


def test_disagreeing_certain_draws_carry_log_classes():
    output = 500.0 * torch.eye(CLASSES)[:, None]  # one draw per class, each certain
    summary = Categorical().predict(output)
    expected = torch.tensor([math.log(CLASSES)])
    torch.testing.assert_close(summary.entropy, expected)
    torch.testing.assert_close(summary.mutual_information, expected)
    torch.testing.assert_close(summary.variance, torch.full((1, CLASSES), 2 / 9))


def test_logits_are_invariant_to_a_constant():
    output = outputs((4,), ())
    a, b = (Categorical().predict(output + c) for c in (0.0, 100.0))
    for name in ("mean", "variance", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("y", [[0, 3], [-1, 2], [0, -100]])
def test_labels_out_of_range(y):
    with pytest.raises(DataError, match=rf"^Categorical: .*range from {min(y)} to {max(y)}\.$"):
        Categorical().check_data(torch.tensor(y), torch.zeros(2, CLASSES))


def test_every_label_in_range_is_accepted():
    Categorical().check_data(torch.arange(CLASSES), torch.zeros(CLASSES, CLASSES))


def test_classes_last_is_refused_by_shape():
    output = torch.zeros(BATCH, 4, 2, CLASSES)  # (batch, *spatial, class)
    with pytest.raises(
        ShapeError, match=r"describes y of shape \(5, 2, 3\), got y of shape \(5, 4"
    ):
        Categorical().check_data(torch.zeros(BATCH, 4, 2).long(), output)


@pytest.mark.parametrize("call", ["distribution", "expected"])
def test_output_without_classes(call):
    with pytest.raises(ShapeError, match=r"^Categorical: expected .*\(batch, class, \.\.\.\), got"):
        getattr(Categorical(), call)(torch.zeros(BATCH))


def test_summary_of_output_without_classes():
    with pytest.raises(ShapeError, match="1 sample axes in front"):
        Categorical().predict(torch.zeros(4, BATCH))


def test_log_prob_gradient_is_softmax_minus_one_hot():
    output = outputs((), (2,)).requires_grad_()
    y = torch.randint(CLASSES, (BATCH, 2))
    Categorical().distribution(output).log_prob(y).sum().backward()
    one_hot = F.one_hot(y, CLASSES).movedim(-1, 1)
    torch.testing.assert_close(output.grad, one_hot - output.detach().softmax(1))
