"""Oracles: torch's cross entropies with probabilities; integer labels where the labels are one-hot."""

import math

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, ShapeError
from pyronorm.likelihoods import Bernoulli, Categorical
from tests.nets import mlp

BATCH, CLASSES = 5, 3
shapes = pytest.mark.parametrize("spatial", [(), (4,), (4, 2)], ids=str)


def case(samples, spatial):
    output = torch.randn(*samples, BATCH, CLASSES, *spatial, dtype=torch.float64) * 3
    y = torch.rand(BATCH, CLASSES, *spatial, dtype=torch.float64)
    return output.requires_grad_(), y / y.sum(1, keepdim=True)


def training(likelihood, output, y, samples=(), weight=None):
    likelihood.check_training(y, output, len(samples))
    distribution, value = likelihood.objective(output, y, len(samples), weight)
    return distribution.log_prob(value)


@shapes
@pytest.mark.parametrize("samples", [(), (2,), (6, 2)], ids=str)
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 0.0])], ids=["plain", "weighted"])
def test_classes_have_torchs_cross_entropy(samples, spatial, weight):
    output, y = case(samples, spatial)
    found = training(Categorical(weight=weight), output, y, samples)
    assert found.shape == (*samples, BATCH)
    torchs = None if weight is None else weight.double()
    flat = output.reshape(-1, BATCH, CLASSES, *spatial)
    expected = torch.stack(
        [
            -F.cross_entropy(one, y, torchs, reduction="none").reshape(BATCH, -1).sum(1)
            for one in flat
        ]
    )
    torch.testing.assert_close(found, expected.reshape(*samples, BATCH))
    counts = torch.arange(float(BATCH), dtype=torch.float64)
    twice = training(Categorical(weight=weight), output, y, samples, counts)
    torch.testing.assert_close(twice, found * counts)
    slopes = [torch.autograd.grad(p.sum(), output, retain_graph=True)[0] for p in (found, expected)]
    torch.testing.assert_close(*slopes)


@shapes
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])], ids=["plain", "weighted"])
def test_one_hot_labels_are_the_integers(spatial, weight):
    output, _ = case((2,), spatial)
    y = torch.randint(CLASSES, (BATCH, *spatial))
    hot = F.one_hot(y, CLASSES).movedim(-1, 1).float()
    likelihood = Categorical(weight=weight)
    expected = training(likelihood, output, y, (2,))
    torch.testing.assert_close(training(likelihood, output, hot, (2,)), expected)
    impossible = output.detach().clone()
    impossible[:, 1, 0] = -torch.inf  # a class that the label excludes
    if bool((y[1] != 0).all()):
        assert training(likelihood, impossible, hot, (2,)).isfinite().all()


@shapes
def test_binary_values_have_torchs_cross_entropy(spatial):
    output, y = case((2,), spatial)
    y = torch.rand_like(y)
    found = training(Bernoulli(), output, y, (2,))
    expected = (
        -F.binary_cross_entropy_with_logits(output, y.expand(2, *y.shape), reduction="none")
        .flatten(2)
        .sum(2)
    )
    torch.testing.assert_close(found, expected)


def test_missing_labels_have_no_part():
    output, y = case((), (4,))
    whole = training(Categorical(), output, y)
    y[1], y[2, :, 3] = math.nan, math.nan
    found = training(Categorical(), output, y)
    assert found[1] == 0
    assert found[2] != whole[2]
    torch.testing.assert_close(found[3:], whole[3:])
    (slope,) = torch.autograd.grad(found.sum(), output)
    assert slope.isfinite().all()
    assert (slope[1] == 0).all()
    assert (slope[2, :, 3] == 0).all()
    binary = training(Bernoulli(), output, y)
    assert binary[1] == 0
    assert binary.isfinite().all()


def test_what_are_no_probabilities_is_refused():
    output, y = case((), ())
    for bad in (y * 2, y - 0.5, torch.where(torch.arange(CLASSES) == 1, math.nan, y)):
        with pytest.raises(DataError, match=r"soft labels must be probabilities, .* \(5, 3\)"):
            Categorical().check_training(bad, output)
    with pytest.raises(ShapeError, match=r"have the shape \(5, 3\), got \(5, 2\)"):
        Categorical().check_training(y[:, :2], output)
    with pytest.raises(DataError, match="between 0 and 1, .*, got 0 to 1.5"):
        Bernoulli().check_training(torch.linspace(0, 1.5, 15).reshape(5, 3), output)


def test_metrics_refuse_them():
    output, y = case((2,), ())
    for call in (
        lambda: Categorical().log_prob(output, y, 1),
        lambda: Categorical().scores(output, y),
        lambda: Categorical().predict(output).nll(y),
    ):
        with pytest.raises(DataError, match="soft labels are for training.*y.argmax"):
            call()
    with pytest.raises(DataError, match="outside of the support"):
        Bernoulli().log_prob(output, y, 1)


def test_mixup_trains_a_model():
    torch.manual_seed(0)
    x = torch.randn(24, 5)
    y = torch.randint(CLASSES, (24,))
    model = pn.NormalizationModel(pn.convert(mlp(norm=nn.LayerNorm)), Categorical(), 24)
    guide = pn.guides.MeanField(model)

    def mixup(x, y):
        hot = F.one_hot(y, CLASSES).float()
        return 0.7 * x + 0.3 * x.flip(0), 0.7 * hot + 0.3 * hot.flip(0)

    history = pn.fit(
        model,
        guide,
        (x, y),
        epochs=3,
        augment=mixup,
        validation=pn.Validation((x, y)),
        progress=False,
    )
    assert all(math.isfinite(loss) for loss in history.losses)
    hot = F.one_hot(y, CLASSES).float()
    model.eval()
    with poutine.trace() as hard, poutine.condition(data=_neutral(model)):
        model(x, y)
    with poutine.trace() as soft, poutine.condition(data=_neutral(model)):
        model(x, hot)
    log_p = [t.trace.log_prob_sum() for t in (hard, soft)]
    torch.testing.assert_close(*log_p)


def _neutral(model):
    channels = model.space.num_channels
    return {"shift": torch.zeros(channels), "scale": torch.ones(channels)}
