from __future__ import annotations

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyronorm.guides import Point
from pyronorm.priors import BatchNoise, Standard
from tests.guides.cases import make_model
from tests.nets import mlp
from tests.priors.laws import pair


@pytest.mark.parametrize("prior", [Standard(0.5, 0.7), BatchNoise(16)])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_training_is_batch_normalization_up_to_a_constant(prior, elbo):
    original = mlp()
    model = make_model(prior=prior, network=original)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    loss = elbo().differentiable_loss(model, Point(model), x, y)
    expected = nn.functional.cross_entropy(original(x), y) * model.num_data
    shift, scale = pair(prior, 10, torch.empty(0))
    constant = -shift.log_prob(torch.zeros(10)) - scale.log_prob(torch.ones(10))
    torch.testing.assert_close(loss, expected + constant)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(original.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_values_are_neutral():
    values = Point(make_model())()
    assert torch.equal(values["shift"], torch.zeros(10))
    assert torch.equal(values["scale"], torch.ones(10))
