"""Metrics against loops over examples, classes and bins written out by hand, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor

from pyronorm.errors import DataError, PyronormError, ShapeError
from pyronorm.stats.classification import classification_metrics


def by_hand(probabilities: np.ndarray, y: np.ndarray, bins: int = 15) -> dict[str, float]:
    """The metrics by their definitions, example by example."""
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
    order = sorted(range(n), key=lambda i: -probabilities[i].max())
    wrong = [int(probabilities[i].argmax() != y[i]) for i in order]
    aurc = sum(sum(wrong[:k]) / k for k in range(1, n + 1)) / n
    return {"accuracy": right / n, "nll": nll / n, "ece": ece, "brier": brier / n, "aurc": aurc}


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
    assert list(found) == ["accuracy", "nll", "ece", "brier", "aurc"]
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
            "aurc": (0 + 1 / 2 + 1 / 3) / 3,
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
        {
            "accuracy": 0.25,
            "nll": math.log(classes),
            "ece": 0.0,
            "brier": 1 - 1 / classes,
            "aurc": 0.75,
        }
    )


def test_certain_predictions() -> None:
    p, y = torch.eye(3), torch.arange(3)
    right = {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0, "aurc": 0.0}
    assert classification_metrics(p, y) == pytest.approx(right, abs=1e-6)
    wrong = classification_metrics(p, y.roll(1))
    # A probability of exactly 0 counts as the smallest positive number, so that the mean stays finite.
    tiny = -math.log(torch.finfo(torch.float32).tiny)
    expected = {"accuracy": 0.0, "nll": tiny, "ece": 1.0, "brier": 2.0, "aurc": 1.0}
    assert wrong == pytest.approx(expected)


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
