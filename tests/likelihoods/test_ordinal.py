"""Oracles: differences of sigmoids in float64, Pyro's ordered logistic distribution."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyronorm.errors import OptionError
from pyronorm.likelihoods import Ordinal

BATCH = 5
POINTS = torch.tensor([-1.5, 0.2, 1.0])


@pytest.mark.parametrize("out", [(), (4,), (4, 2)], ids=str)
@pytest.mark.parametrize("samples", [(), (6,)], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_probabilities_are_differences_of_sigmoids(out, samples, learned):
    likelihood = Ordinal(POINTS, learned=learned).double()
    output = 2 * torch.randn(*samples, BATCH, *out).double()
    below = torch.sigmoid(POINTS.double() - output[..., None])
    edges = torch.cat(
        [torch.zeros_like(output)[..., None], below, torch.ones_like(output)[..., None]], -1
    )
    found = likelihood.expected(output, len(samples))
    torch.testing.assert_close(found.detach(), edges.diff(dim=-1), rtol=1e-6, atol=1e-9)
    theirs = dist.OrderedLogistic(output, POINTS.double())
    torch.testing.assert_close(found.detach(), theirs.probs, rtol=1e-5, atol=1e-6)


def test_far_classes_have_finite_densities_and_gradients():
    output = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    for k in range(4):
        log_p = Ordinal(POINTS).log_prob(output, torch.full((3,), k))
        assert bool(log_p.isfinite().all())
        (gradient,) = torch.autograd.grad(log_p.sum(), output)
        assert bool(gradient.isfinite().all())
    # far out a class is the last but one with the probability of a step down the logistic's tail
    assert float(
        Ordinal(POINTS).log_prob(output, torch.full((3,), 0))[2].detach()
    ) == pytest.approx(-201.5, abs=1e-3)


def test_learned_cutpoints_are_ordered_and_reach_the_shares():
    y = torch.tensor([0] * 10 + [1] * 30 + [2] * 40 + [3] * 20)
    likelihood = Ordinal(4)
    optimizer = torch.optim.LBFGS(
        likelihood.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(torch.zeros(100), y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    found = likelihood.cutpoints.detach()
    torch.testing.assert_close(found, torch.tensor([0.1, 0.4, 0.8]).logit(), rtol=1e-3, atol=1e-3)


def test_numbers_of_classes():
    for classes in (2, 3, 7):
        likelihood = Ordinal(classes)
        assert likelihood.expected(torch.zeros(BATCH)).shape == (BATCH, classes)
        assert all(isinstance(p, nn.Parameter) for p in (likelihood.first, likelihood.log_gaps))
    assert not list(Ordinal(POINTS, learned=False).parameters())
    torch.testing.assert_close(Ordinal(POINTS, learned=False).cutpoints, POINTS)


@pytest.mark.parametrize(
    "bad",
    [
        1,
        0,
        torch.tensor([]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([0.0, float("nan")]),
    ],
)
def test_refuses_cutpoints(bad):
    with pytest.raises(OptionError, match=r"Ordinal: (needs at least 2|cutpoints must be finite)"):
        Ordinal(bad)
