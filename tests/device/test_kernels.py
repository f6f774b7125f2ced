"""How many kernels the device runs in a step (forward and backward) and for a draw: upper bounds.

On a GPU a step of a small batch takes as long as it takes to start them.
"""

from __future__ import annotations

import pyro
import pytest
import torch
import torch.nn.functional as F

import pyronorm as pn
from pyronorm.infer.objective import NegativeELBO
from pyronorm.networks import ResNet18
from tests.simulated_device import DEVICE

KERNELS = {
    "plain": 161,
    "Point": 157,
    "MeanField": 210,
    "MeanField, Standard": 200,
    "LowRank": 353,
    "BatchNoise": 166,
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_a_step(simulated, name):
    x, y = torch.randn(2, 3, 8, 8).to(DEVICE), torch.randint(10, (2,)).to(DEVICE)
    network = ResNet18(num_classes=10)
    if name == "plain":
        network.to(DEVICE)
        call = lambda: F.cross_entropy(network(x), y)  # noqa: E731
    else:
        kind, _, law = name.partition(", ")
        prior = getattr(pn.priors, law)() if law else None
        network = pn.convert(network)
        model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 100, prior)
        options = (64.0,) if kind == "BatchNoise" else ()
        guide = getattr(pn.guides, kind)(model, *options)
        objective = NegativeELBO(model.to(DEVICE).train(), guide.to(DEVICE), None)
        call = lambda: objective(1.0, False, x, y)  # noqa: E731
    with pyro.validation_enabled(False):  # as after the first batch
        call()
        simulated.kernels.clear()
        call().backward()
    found = simulated.kernels.total()
    assert found <= KERNELS[name], f"{found} kernels: {simulated.kernels.most_common()}"


DRAWS = 32


def test_kernels_of_a_predictive_draw(simulated):
    """With all of a call's own: checks of statistics and of the network. A plain pass takes 67."""
    torch.manual_seed(0)
    network = pn.convert(ResNet18(num_classes=10))
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 100).to(DEVICE)
    guide = pn.guides.MeanField(model).to(DEVICE)
    x = torch.randn(2, 3, 8, 8).to(DEVICE)
    pn.predict(model, guide, x, DRAWS)  # finds out that they may
    simulated.kernels.clear()
    pn.predict(model, guide, x, DRAWS)
    found = simulated.kernels.total() / DRAWS
    assert found <= 20, f"{found} kernels: {simulated.kernels.most_common()}"
