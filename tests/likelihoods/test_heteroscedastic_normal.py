"""Oracle: torch's normal distribution, and its Gaussian NLL loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import HeteroscedasticNormal

BATCH = 5


@pytest.mark.parametrize("out", [(), (3,), (4, 2)], ids=str)
@pytest.mark.parametrize("samples", [(), (6,), (6, 2)], ids=str)
@pytest.mark.parametrize("min_std", [0.0, 0.3])
def test_log_prob_is_torchs_gaussian_loss(out, samples, min_std):
    output, y = torch.randn(*samples, BATCH, 2, *out).double(), torch.randn(BATCH, *out).double()
    n = len(samples)
    mean, log_std = output.select(n + 1, 0), output.select(n + 1, 1)
    std = min_std + log_std.exp()
    loss = F.gaussian_nll_loss(mean, y.expand_as(mean), std**2, full=True, reduction="none")
    found = HeteroscedasticNormal(min_std).log_prob(output, y, n)
    torch.testing.assert_close(found, -loss.reshape(*samples, BATCH, -1).sum(-1))


def test_variance_is_the_total():
    output = torch.randn(6, BATCH, 2, 3)
    found = HeteroscedasticNormal(0.2).predict(output)
    noise = (0.2 + output[:, :, 1].exp()).square().mean(0)
    torch.testing.assert_close(found.mean, output[:, :, 0].mean(0))
    torch.testing.assert_close(found.variance, noise + output[:, :, 0].var(0, correction=0))


@pytest.mark.parametrize("shape", [(BATCH, 1), (BATCH, 3, 2), (BATCH, 4)])
def test_other_than_two_outputs(shape):
    with pytest.raises(
        ShapeError, match=r"shape \(batch, 2, \.\.\.\), mean and log noise on axis 1"
    ):
        HeteroscedasticNormal().distribution(torch.zeros(shape))


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_refuses_noise(bad):
    with pytest.raises(OptionError, match="min_std must be at least 0 and finite"):
        HeteroscedasticNormal(bad)
