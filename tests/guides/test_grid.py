"""Every guide, every prior and every normalizer together, on scikit-learn's digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm import NormalizationModel, convert, fit, normalizers, to_arviz
from pyronorm.diagnostics import pareto_k
from pyronorm.guides import Paired, Point
from pyronorm.infer import as_posterior
from pyronorm.infer.elbo import default_elbo
from pyronorm.likelihoods import Categorical
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, ScaleInvariant, Standard
from tests.guides.cases import CASES, make_guide, make_model
from tests.normalizers import cases

PRIORS = {
    "BatchNoise": BatchNoise(16.0),
    "Standard": Standard(0.3, 0.3),
    "Flat": ScaleInvariant(),
    "Hierarchical": HierarchicalBatchNoise(16.0, 3.0),
}
NORMALIZERS = {**cases.NORMALIZERS, "Ghost": normalizers.Ghost(8)}
# A point has no density, and a bank neither: pareto_k says so.
WITHOUT_K = {"Point", "MAP", "MonteCarloBatchNorm"}


def digits(num_data: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:num_data], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return x, torch.tensor(labels[:num_data])


def network(x: torch.Tensor) -> nn.Module:
    """A convolutional network after a few steps of ordinary training."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    with torch.no_grad():
        for _ in range(20):
            net(x)  # running statistics
    return net


def groups_of(idata) -> list[str]:
    """Names of the groups, of an InferenceData (ArviZ 0.x) or a DataTree (1.x)."""
    return list(idata.groups() if callable(idata.groups) else idata.children)


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_one_epoch_k_and_export(prior, normalizer):
    x, y = digits()
    original = network(x)
    reads_weights = isinstance(normalizer, (normalizers.Analytic, normalizers.Weight))
    for case in CASES:
        converted = convert(original, normalizer, example_input=x if reads_weights else None)
        model = NormalizationModel(converted, Categorical(), len(x), prior)
        if case == "MonteCarloBatchNorm":  # what training with batch normalization leaves behind
            fit(model, Point(model), (x, y), epochs=1, batch_size=32, progress=False)
        guide = make_guide(case, model)
        if guide.has_density:
            before = [p.detach().clone() for p in guide.parameters()]
            history = fit(model, guide, (x, y), epochs=1, batch_size=32, progress=False)
            assert math.isfinite(history.losses[-1]), case
            for old, new in zip(before, guide.parameters(), strict=True):
                assert new.isfinite().all(), case
                assert not torch.equal(old, new), case
        idata = to_arviz(model, guide, (x, y), 30, include_inputs=False, seed=1)
        posterior = idata["posterior"]
        for name in posterior.data_vars:
            assert np.isfinite(posterior[name].values).all(), (case, name)
        assert (posterior["scale"] > 0).all(), case
        assert ("prior" in groups_of(idata)) == prior.is_proper
        hierarchical = isinstance(prior, HierarchicalBatchNoise) and guide.has_density
        assert ("batch_size" in posterior) == hierarchical, case
        assert np.isfinite(idata["sample_stats"]["lp"].values).all(), case
        found = pareto_k(idata)
        if case in WITHOUT_K:
            assert "has no density log q" in found.undefined, case
        else:
            assert math.isfinite(found.k), (case, found.undefined)
            assert found.undefined == "", case


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
def test_chains_of_nuts_export_beside_guides(normalizer):
    x, y = digits(32)
    reads_weights = isinstance(normalizer, (normalizers.Analytic, normalizers.Weight))
    converted = convert(network(x), normalizer, example_input=x if reads_weights else None)
    pn.estimate_population_statistics(converted, x)
    for prior in (PRIORS["Standard"], PRIORS["Hierarchical"]):
        model = NormalizationModel(converted, Categorical(), len(x), prior)
        chains = pn.run_nuts(model, (x, y), 4, 2, 1, max_tree_depth=2, progress=False, seed=1)
        idata = to_arviz(model, chains, (x, y), include_inputs=False)
        assert np.isfinite(idata["sample_stats"]["lp"].values).all()
        assert (idata["posterior"]["scale"] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("case", [c for c in CASES if c not in WITHOUT_K])
def test_kl_of_the_elbo_is_that_of_draws(case, prior):
    """Within 5 standard errors of 4,000 draws and 1,200 particles: false alarms at 6e-7 each."""
    model = make_model(prior=prior)
    guide = make_guide(case, model)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if not name.startswith("flows"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    draws = as_posterior(guide, "test").draw(model, 4000)
    ratio = draws.log_density - prior.log_prob(model.space, draws.shift, draws.scale, draws.hyper)
    particles = {"num_particles": 100, "vectorize_particles": True, "max_plate_nesting": 0}
    elbo = type(default_elbo(guide))(**particles)
    like = model.network.like
    losses = torch.tensor(
        [elbo.loss(lambda: prior.sample(model.space, like), guide) for _ in range(12)]
    )
    error = (ratio.var() / len(ratio) + losses.var() / len(losses)).sqrt()
    assert abs(ratio.mean() - losses.mean()) < 5 * error + 1e-4 * abs(ratio.mean()) + 1e-4
    exact = guide.has_analytic_kl and not isinstance(prior, HierarchicalBatchNoise)
    if exact and not isinstance(guide, Paired):  # its closed form is that given the shift
        assert losses.std() < 1e-5 * abs(losses.mean()) + 1e-5
