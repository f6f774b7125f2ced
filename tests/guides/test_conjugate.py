"""Trained guides against the exact posterior of the linear-Gaussian model, by integration."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch
from pyro.infer import TraceMeanField_ELBO

from pyronorm.guides import MeanField
from pyronorm.priors import Standard
from tests.guides.conjugate import Conjugate


@pytest.mark.parametrize("neutral", [False, True])
def test_mean_field_reaches_its_optimum_and_reports_too_little_spread(neutral):
    problem = Conjugate(Standard(), num_data=60, offset=1.0)
    guide = MeanField(problem.model, neutral=neutral).double()
    parameters = list(guide.parameters())

    def loss(values):
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.fill_(value)
        return -problem.elbo(guide)

    best = scipy.optimize.minimize(
        loss, [p.item() for p in parameters], method="Nelder-Mead", options={"fatol": 1e-5}
    )
    guide = MeanField(problem.model, neutral=neutral).double()
    elbo = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=2)
    problem.train(guide, elbo)
    trained = [p.item() for p in guide.parameters()]
    assert trained == pytest.approx(best.x.tolist(), abs=0.05)
    if neutral:
        return  # held away from the posterior's mean, it is as wide as it takes to reach it
    weight = problem.posterior()
    for values, log_std in (
        (problem.shift, guide.shift_log_std),
        (problem.log_scale, guide.log_scale_log_std),
    ):
        mean = (weight * values).sum()
        exact = math.sqrt((weight * (values - mean).square()).sum().item())
        assert log_std.exp().item() < 0.95 * exact
