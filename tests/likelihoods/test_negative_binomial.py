"""Oracle: scipy's negative binomial, in its mean and its concentration."""

import numpy as np
import pytest
import scipy.stats
import torch

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import NegativeBinomial, Poisson

BATCH = 5


@pytest.mark.parametrize("concentration", [0.8, torch.tensor([0.5, 2.0, 9.0])])
@pytest.mark.parametrize("learned", [False, True])
def test_log_prob_and_summaries_are_scipys(concentration, learned):
    likelihood = NegativeBinomial(concentration, learned=learned).double()
    output, y = torch.randn(BATCH, 3).double(), torch.randint(9, (BATCH, 3))
    mean, r = output.exp().numpy(), np.asarray(concentration)
    theirs = scipy.stats.nbinom(r, r / (r + mean))
    found = likelihood.log_prob(output, y).detach()
    np.testing.assert_allclose(found, theirs.logpmf(y.numpy()).sum(1), rtol=1e-5)
    found = likelihood.predict(output[None])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, mean + mean**2 / r, rtol=1e-5)


def test_large_concentrations_are_poissons():
    output, y = torch.randn(BATCH).double(), torch.randint(9, (BATCH,))
    found = NegativeBinomial(1e7).double().log_prob(output, y)
    torch.testing.assert_close(found, Poisson().log_prob(output, y), rtol=1e-5, atol=1e-5)


def test_refuses_concentrations():
    with pytest.raises(OptionError, match="NegativeBinomial: concentration must be positive"):
        NegativeBinomial(0.0)
    with pytest.raises(ShapeError, match="concentration of shape .* does not broadcast"):
        NegativeBinomial(torch.ones(3)).distribution(torch.zeros(BATCH, 2))
