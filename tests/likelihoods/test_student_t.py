"""Oracle: scipy's Student's t."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import StudentT

BATCH = 5


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scale", [0.6, torch.tensor([0.5, 1.0, 2.0])])
def test_log_prob_and_variance_are_scipys(learned, scale):
    likelihood = StudentT(3.5, scale, learned=learned).double()
    output, y = torch.randn(BATCH, 3).double(), 3 * torch.randn(BATCH, 3).double()
    theirs = scipy.stats.t(3.5, output.numpy(), np.asarray(scale))
    found = likelihood.log_prob(output, y).detach()
    np.testing.assert_allclose(found, theirs.logpdf(y.numpy()).sum(1), rtol=1e-5)
    found = likelihood.predict(output[None])
    np.testing.assert_allclose(found.variance, theirs.var(), rtol=1e-5)
    np.testing.assert_allclose(found.entropy, theirs.entropy(), rtol=1e-5)
    assert len(list(likelihood.parameters())) == (2 if learned else 0)


def test_tails_and_scale_are_learned():
    truth = scipy.stats.t(4.0, 0, 0.5).rvs(5000, random_state=0)
    y = torch.tensor(truth)
    likelihood = StudentT(20.0, 1.0, learned=True).double()
    optimizer = torch.optim.LBFGS(
        likelihood.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(torch.zeros(5000).double(), y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    df, _, scale = scipy.stats.t.fit(truth, floc=0)
    assert float(likelihood.df.detach()) == pytest.approx(df, rel=1e-2)
    assert float(likelihood.scale.detach()) == pytest.approx(scale, rel=1e-2)


@pytest.mark.parametrize("df", [2.0, 0.5, -1.0, math.inf, math.nan])
def test_refuses_degrees_of_freedom(df):
    with pytest.raises(OptionError, match="StudentT: df must be above 2 and finite"):
        StudentT(df)


def test_refuses_scales():
    with pytest.raises(OptionError, match="StudentT: scale must be positive"):
        StudentT(4.0, 0.0)
    with pytest.raises(ShapeError, match="StudentT: scale of shape .* does not broadcast"):
        StudentT(4.0, torch.ones(3)).distribution(torch.zeros(BATCH, 2))
