from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import ShapeError
from pyronorm.laws import Hierarchical, Independent, Law, Rows
from pyronorm.laws.law import check_event, log_normal, normal, quantiles_of


def test_a_law_says_how_its_variables_follow():
    with pytest.raises(TypeError, match=r"abstract class Law .*run"):
        Law()


def test_vectors_of_independent_values():
    loc, std, q = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0]), torch.tensor([0.1, 0.5, 0.7])
    for make, kind in ((normal, dist.Normal), (log_normal, dist.LogNormal)):
        fn = check_event(make(loc, std), "shift")
        assert fn.event_shape == (2,)
        assert torch.equal(quantiles_of(fn, q), kind(loc, std).icdf(q[:, None]))
    with pytest.raises(ShapeError, match="the distribution of shift must be one of vectors"):
        check_event(dist.Normal(loc, std), "shift")


def test_repr_names_the_distributions():
    shift, scale = normal(torch.zeros(3), torch.ones(3)), log_normal(torch.zeros(3), torch.ones(3))
    assert repr(Independent(shift, scale)) == "Independent(shift=Normal[3], scale=LogNormal[3])"
    rows = Rows(torch.zeros(4, 3), torch.ones(4, 3), "bank")
    shape = "tensor of shape (4, 3)"
    assert repr(rows) == f"Rows(shift={shape}, scale={shape}, source='bank')"
    hierarchical = Hierarchical(
        {"n": dist.Gamma(torch.ones(2), 1.0).to_event(1)}, lambda _: rows, True
    )
    assert "hyperparameters={n: Gamma[2]}" in repr(hierarchical)
