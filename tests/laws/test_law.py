from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import ShapeError
from pyronorm.laws import Law
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
