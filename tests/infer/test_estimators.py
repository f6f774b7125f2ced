"""The estimators give Pyro's losses and gradients, and the host never waits for them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal

from pyronorm import init_to_neutral
from pyronorm.infer.elbo import KLWeight, default_elbo
from pyronorm.infer.estimators import DeviceMeanFieldELBO, DeviceTraceELBO
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, ScaleInvariant, Standard
from tests.guides.cases import CASES, make_guide, make_model
from tests.simulated_device import DEVICE

PAIRS = [(DeviceTraceELBO, Trace_ELBO), (DeviceMeanFieldELBO, TraceMeanField_ELBO)]
PRIORS = [BatchNoise(16.0), Standard(0.3, 0.4), ScaleInvariant(), HierarchicalBatchNoise(16.0, 3.0)]
# torch checks its Cholesky decomposition.
WAITS = {"SWAG": 1}
GUIDES = [case for case in CASES if make_guide(case).has_density]


def objective(elbo, model, guide, *data):
    pyro.set_rng_seed(2)
    loss = elbo.differentiable_loss(model, guide, *data)
    parameters = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


def check(ours, pyros, model, guide, *data):
    loss, gradients = objective(ours, model, guide, *data)
    expected, expected_gradients = objective(pyros, model, guide, *data)
    torch.testing.assert_close(loss, expected)
    assert any(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], msg=f"{name}: %s")


def data():
    return torch.randn(6, 5).double(), torch.randint(3, (6,))


@pytest.mark.parametrize("case", GUIDES)
def test_every_guide_as_pyro(case):
    for prior in PRIORS:
        for draws in (1, 3):
            model = make_model(draws, prior).double()
            guide = make_guide(case, model)
            pair = PAIRS[guide.has_analytic_kl]
            with KLWeight(0.5):
                check(pair[0](), pair[1](), model, guide, *data())


@pytest.mark.parametrize(("ours", "pyros"), PAIRS)
def test_several_particles(ours, pyros):
    model = make_model().double()
    guide = make_guide("MeanField", model)
    check(ours(num_particles=3), pyros(num_particles=3), model, guide, *data())
    together = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    model.eval()
    check(ours(**together), pyros(**together), model, guide, *data())


@pytest.mark.parametrize("auto", [AutoDelta, AutoMultivariateNormal])
def test_autoguides(auto):
    model = make_model(prior=Standard(0.3, 0.3)).double()
    guide = auto(model, init_loc_fn=init_to_neutral)
    guide(*data())
    check(DeviceTraceELBO(), Trace_ELBO(), model, guide, *data())


def test_latents_without_reparameterization_have_pyros_gradient():
    q = torch.tensor(0.3, requires_grad=True)

    def model():
        count = pyro.sample("count", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(count, 1.0), obs=torch.tensor(0.7))

    def guide():
        pyro.sample("count", dist.Bernoulli(q))

    found = []
    for elbo in (DeviceTraceELBO(), Trace_ELBO()):
        pyro.set_rng_seed(1)
        loss = elbo.differentiable_loss(model, guide)
        found.append((loss.detach(), *torch.autograd.grad(loss, q)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", [case for case in GUIDES if "." not in case])
def test_the_host_never_waits(simulated, case):
    model = make_model()
    guide = make_guide(case, model)
    model.to(DEVICE)
    guide.to(DEVICE)
    x, y = torch.randn(6, 5, device=DEVICE), torch.randint(3, (6,), device=DEVICE)
    elbo = default_elbo(guide)
    elbo.max_plate_nesting = 1  # else Pyro runs the model once to find it out
    with pyro.validation_enabled(False):
        simulated.waits.clear()
        elbo.differentiable_loss(model, guide, x, y).backward()
    assert simulated.waits.total() == WAITS.get(case, 0), simulated.waits
