"""Oracles: torch's Poisson loss, scipy's Poisson."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pyronorm.errors import DataError
from pyronorm.likelihoods import Poisson

BATCH = 5


@pytest.mark.parametrize("out", [(), (3,), (2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int16])
def test_log_prob_is_torchs_loss_but_for_a_constant(out, dtype):
    output, y = torch.randn(6, BATCH, *out).double(), torch.randint(9, (BATCH, *out))
    loss = F.poisson_nll_loss(output, y.double().expand_as(output), reduction="none")
    loss = loss + torch.lgamma(y.double() + 1)
    found = Poisson().log_prob(output, y.to(dtype), 1)
    torch.testing.assert_close(found, -loss.reshape(6, BATCH, -1).sum(-1), rtol=1e-5, atol=1e-6)


def test_summaries_of_one_draw_are_scipys():
    output = 2 * torch.randn(1, BATCH).double()
    theirs = scipy.stats.poisson(output[0].exp().numpy())
    found = Poisson().predict(output)
    np.testing.assert_allclose(found.mean, theirs.mean())
    np.testing.assert_allclose(found.variance, theirs.var())
    np.testing.assert_allclose(found.entropy, theirs.entropy(), rtol=1e-6)


@pytest.mark.parametrize("y", [[-1.0, 2.0], [0.5, 2.0], [float("inf"), 0.0]])
def test_no_counts(y):
    with pytest.raises(DataError, match="Poisson: y has values outside of the support"):
        Poisson().log_prob(torch.zeros(2), torch.tensor(y))
