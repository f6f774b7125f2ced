"""A weight of an example is how often it counts: as often as if it were there so many times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyronorm as pn
from pyronorm.baselines import fit_jackknife, fit_laplace
from pyronorm.diagnostics import mode_gap
from pyronorm.errors import DataError
from pyronorm.infer import log_likelihoods, predictive_nll
from pyronorm.likelihoods import Categorical, Normal
from tests.nets import mlp

COUNTS = torch.tensor([2.0, 0.0, 1.0, 3.0, 1.0, 1.0, 4.0, 0.0])


def data(likelihood) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    x = torch.randn(len(COUNTS), 5)
    y = torch.randn(len(COUNTS), 3)
    return x, y if isinstance(likelihood, Normal) else y.argmax(1)


def repeated(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.repeat_interleave(COUNTS.long(), 0) for tensor in tensors)


def make(likelihood, num_data: int) -> pn.NormalizationModel:
    torch.manual_seed(3)
    return pn.NormalizationModel(
        pn.convert(mlp(norm=nn.LayerNorm)), likelihood, num_data, pn.priors.Standard()
    )


def forms(x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
    whole = len(x)
    return {
        "tensors": (x, y, COUNTS),
        "double": (x, y, COUNTS.double()),
        "dataset": TensorDataset(x, y, COUNTS),
        "loader": DataLoader(TensorDataset(x, y, COUNTS), whole),
        "batches": [(x, y, COUNTS)],
        "dictionary": [({"input": x}, y, COUNTS)],
    }


@pytest.mark.parametrize("form", forms(*data(Categorical())))
@pytest.mark.parametrize("kind", [Categorical, lambda: Normal(learned=True)])
def test_training_is_that_of_repeated_examples(form, kind):
    sgd = pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    options = {"epochs": 2, "batch_size": 64, "optimization": sgd, "seed": 0, "progress": False}
    x, y = data(kind())
    weighted, plain = make(kind(), len(x)), make(kind(), int(COUNTS.sum()))
    first = pn.fit(weighted, pn.guides.Point(weighted), forms(x, y)[form], **options)
    second = pn.fit(plain, pn.guides.Point(plain), repeated(x, y), **options)
    # both are per example of num_data
    scale = plain.num_data / weighted.num_data
    assert first.losses[0] == pytest.approx(second.losses[0] * scale, rel=1e-5)
    same = pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1 * scale))
    plain = make(kind(), int(COUNTS.sum()))
    pn.fit(plain, pn.guides.Point(plain), repeated(x, y), **(options | {"optimization": same}))
    for a, b in zip(weighted.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", [Categorical, Normal])
def test_what_is_a_mean_is_weighted(kind):
    x, y = data(kind())
    model = make(kind(), len(x))
    guide = pn.guides.MeanField(model, init_std=0.3)
    if kind is Normal:
        y[2, 1] = torch.nan
    weighted = pn.evaluate(model, guide, (x, y, COUNTS), 8, batch_size=3, seed=0)
    expected = pn.evaluate(model, guide, repeated(x, y), 8, seed=0)
    # an example of weight 2 is one step of the risk-coverage curve, two examples are two
    areas = [found.pop("aurc", 0.0) for found in (weighted, expected)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)
    assert weighted == pytest.approx(expected, rel=1e-5)
    nll = predictive_nll(model, guide, (x, y, COUNTS), 8, seed=0)
    assert nll == pytest.approx(expected["nll"], rel=1e-5)
    validated = pn.fit(
        model, guide, (x, y), epochs=1, validation=pn.Validation((x, y, COUNTS)), progress=False
    )
    assert validated.epochs[0].validation_nll is not None
    each = log_likelihoods(model, guide, (x, y, COUNTS), 4, seed=0)
    once = log_likelihoods(model, guide, (x, y), 4, seed=0)
    assert torch.allclose(each, once * COUNTS)


def test_what_is_of_an_example_is_not():
    x, y = data(Categorical())
    model = make(Categorical(), len(x))
    guide = pn.guides.MeanField(model)
    weighted = pn.predict(model, guide, (x, y, COUNTS), 4, seed=0)
    assert torch.equal(weighted.mean, pn.predict(model, guide, x, 4, seed=0).mean)


def test_chains_and_exports_have_the_weighted_density():
    x, y = data(Categorical())
    model = make(Categorical(), len(x))
    options = {"num_samples": 4, "warmup": 4, "num_chains": 1, "seed": 0, "progress": False}
    weighted = pn.run_nuts(model, (x, y, COUNTS), **options)
    plain = make(Categorical(), int(COUNTS.sum()))
    expected = pn.run_nuts(plain, repeated(x, y), **options)
    assert torch.allclose(weighted.shift, expected.shift, atol=1e-3)
    lp = pn.to_arviz(model, weighted, (x, y, COUNTS))["sample_stats"]["lp"].values
    other = pn.to_arviz(plain, weighted, repeated(x, y))["sample_stats"]["lp"].values
    np.testing.assert_allclose(lp, other, rtol=1e-5)


def test_diagnostics_and_baselines():
    x, y = data(Categorical())
    model, plain = make(Categorical(), len(x)), make(Categorical(), int(COUNTS.sum()))
    weighted = fit_laplace(model, (x, y, COUNTS), prior_precision=2.0)
    expected = fit_laplace(plain, repeated(x, y), prior_precision=2.0)
    covariance = [posterior.root @ posterior.root.T for posterior in (weighted, expected)]
    assert torch.allclose(*covariance, atol=1e-6)
    batch = torch.nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model = pn.NormalizationModel(pn.convert(batch), Categorical(), len(x))
    pn.estimate_population_statistics(model, x)
    gap = mode_gap(model, (x, y, COUNTS), batch_size=8)
    assert gap.evaluation_loss == pytest.approx(
        pn.evaluate(model, pn.guides.Point(model), repeated(x, y))["nll"], rel=1e-5
    )
    plain = make(Normal(), len(x))
    with pytest.raises(DataError, match="examples with weights have no place"):
        fit_jackknife(plain, (x, torch.randn(8, 3), COUNTS))


def test_what_are_no_weights_is_refused():
    x, y = data(Categorical())
    model = make(Categorical(), len(x))
    guide = pn.guides.Point(model)
    for bad, message in (
        (y, "how often each example counts: floating point numbers"),
        (COUNTS[:, None], r"numbers of shape \(8,\), got torch.float32 of shape \(8, 1\)"),
        (-COUNTS, "finite and not negative"),
        (COUNTS / 0, "finite and not negative"),
    ):
        for call in (
            lambda bad=bad: pn.fit(model, guide, (x, y, bad), epochs=1, progress=False),
            lambda bad=bad: pn.evaluate(model, guide, [(x, y, bad)]),
        ):
            with pytest.raises(DataError, match=message):
                call()
    with pytest.raises(DataError, match="count for nothing"):
        pn.evaluate(model, guide, (x, y, 0 * COUNTS))
    with pytest.raises(DataError, match="count for nothing"):
        predictive_nll(model, guide, (x, y, 0 * COUNTS))
    with pytest.raises(DataError, match="either all batches have weights"):
        pn.evaluate(model, guide, [(x, y, COUNTS), (x, y)])


def test_several_draws_and_particles_have_weights_too():
    x, y = data(Categorical())
    torch.manual_seed(3)
    network = pn.convert(mlp(norm=nn.LayerNorm))
    model = pn.NormalizationModel(network, Categorical(), 8, draws=4)
    guide = pn.guides.Point(model)  # all draws are neutral, and their share of the batch differs
    one = pn.NormalizationModel(network, Categorical(), 8)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    found = Trace_ELBO().loss(model, guide, x, y, COUNTS)
    expected = Trace_ELBO().loss(one, pn.guides.Point(one), x, y, COUNTS)
    assert found == pytest.approx(expected, rel=1e-5)
    vectorized = elbo.loss(one, pn.guides.Point(one), x, y, COUNTS)
    assert vectorized == pytest.approx(expected, rel=1e-5)


def test_examples_of_which_none_counts_are_refused():
    x, y = data(Categorical())
    network = pn.convert(mlp())
    model = pn.NormalizationModel(network, Categorical(), len(y))
    with pytest.raises(DataError, match="all weights are 0: the examples count for nothing"):
        pn.fit(model, pn.guides.MeanField(model), (x, y, torch.zeros(len(y))), epochs=1)
