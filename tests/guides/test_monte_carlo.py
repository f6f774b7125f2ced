from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyronorm.errors import NoDensityError
from pyronorm.guides import MonteCarloBatchNorm
from tests.guides.cases import make_bank, make_model


def test_a_draw_is_a_row_of_all_layers():
    model = make_model()
    bank = make_bank(model, rows=6)
    guide = MonteCarloBatchNorm(model, bank)
    with pyro.plate("draws", 500, dim=-2):
        nodes = poutine.trace(guide).get_trace().nodes
    row = nodes["row"]["value"].squeeze(1)
    assert torch.equal(nodes["shift"]["value"].squeeze(1), bank.shift[row])
    assert torch.equal(nodes["scale"]["value"].squeeze(1), bank.scale[row])
    counts = torch.bincount(row, minlength=6)
    # binomial(500, 1/6): within 4.5 standard deviations of 83
    assert (counts - 500 / 6).abs().max() < 4.5 * (500 * 5 / 36) ** 0.5


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_it_has_no_elbo_and_says_so(elbo):
    model = make_model()
    guide = MonteCarloBatchNorm(model, make_bank(model))
    with pytest.raises(
        NoDensityError, match=r"MonteCarloBatchNorm is known only through its draws"
    ):
        elbo().loss(model, guide, torch.randn(4, 5), torch.randint(3, (4,)))


def test_predictive_uses_the_same_row_in_guide_and_model():
    model = make_model().eval()
    bank = make_bank(model, rows=6)
    samples = Predictive(model, guide=MonteCarloBatchNorm(model, bank), num_samples=9)(
        torch.randn(4, 5)
    )
    assert samples["y"].shape == (9, 4)
