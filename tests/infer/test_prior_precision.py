"""The prior precision of Laplace's approximation, by held-out data."""

from __future__ import annotations

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError
from pyronorm.guides import DiagonalLaplace, FullLaplace, Point
from pyronorm.infer import choose_prior_precision
from pyronorm.testing.posterior import small_inputs, small_model


def test_it_is_the_best_of_the_grid() -> None:
    model = small_model()
    train = small_inputs(50), torch.arange(50) % 3
    held_out = small_inputs(23), torch.arange(23) % 3
    curvature = pn.collect_curvature(model, train, Point(model))
    grid = [1.0, 100.0, 10_000.0]
    for kind in (DiagonalLaplace, FullLaplace):
        found = choose_prior_precision(model, kind, curvature, held_out, grid, seed=3)
        nll = {
            precision: pn.infer.predictive_nll(
                model, kind.from_curvature(model, curvature, precision), held_out, 32, seed=3
            )
            for precision in grid
        }
        assert type(found) is kind
        assert found.prior_precision.unique().item() == min(nll, key=lambda p: nll[p])


def test_refusals() -> None:
    model = small_model()
    data = small_inputs(50), torch.arange(50) % 3
    curvature = pn.collect_curvature(model, data, Point(model), rank=0)
    with pytest.raises(OptionError, match="needs at least one candidate"):
        choose_prior_precision(model, DiagonalLaplace, curvature, data, [])
    with pytest.raises(OptionError, match="the curvature has 0 of 18 rows"):
        choose_prior_precision(model, FullLaplace, curvature, data)
