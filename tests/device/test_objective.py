"""Every guide, prior, likelihood and normalizer: ELBO and gradient are those of the CPU."""

from __future__ import annotations

import copy
from itertools import cycle, product

import pyro
import pytest
import torch

from pyronorm.infer.elbo import default_elbo
from tests.device.cases import LIKELIHOODS, NORMALIZERS, PRIORS, make_data, make_model
from tests.guides.cases import CASES, make_guide
from tests.simulated_device import DEVICE

WITHOUT_DENSITY = {"MonteCarloBatchNorm"}
GUIDES = [case for case in CASES if case not in WITHOUT_DENSITY]
# Every kind of guide with every normalizer; each pair has the next prior and likelihood.
KINDS = [guide for guide in GUIDES if "." not in guide]
RESTS = cycle(product(PRIORS, LIKELIHOODS))
SOME = [(*pair, *next(RESTS)) for pair in product(KINDS, NORMALIZERS)]
OTHERS = sorted(set(product(GUIDES, NORMALIZERS, PRIORS, LIKELIHOODS)) - set(SOME))


def objective(model, guide, x, y):
    """The loss and all gradients, from the same draws each time."""
    pyro.set_rng_seed(3)
    loss = default_elbo(guide).differentiable_loss(model, guide, x, y)
    loss.backward()
    parameters = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    return {"loss": loss} | {n: p.grad for n, p in parameters.items() if p.grad is not None}


def check(guide: str, normalizer: str, prior: str, likelihood: str) -> None:
    model = make_model(normalizer, prior, likelihood)
    posterior = make_guide(guide, model)
    x, y = make_data(likelihood)
    model_there, posterior_there = copy.deepcopy((model, posterior))
    expected = objective(model, posterior, x, y)
    model_there.to(DEVICE)
    posterior_there.to(DEVICE)
    found = objective(model_there, posterior_there, x.to(DEVICE), y.to(DEVICE))
    assert found.keys() == expected.keys()
    assert all(value.device == DEVICE for value in found.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("guide", "normalizer", "prior", "likelihood"), SOME)
def test_as_on_the_cpu(simulated, guide, normalizer, prior, likelihood):
    check(guide, normalizer, prior, likelihood)


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("guide", GUIDES)
def test_all_the_others(simulated, guide, normalizer):
    for case in OTHERS:
        if case[:2] == (guide, normalizer):
            check(*case)
