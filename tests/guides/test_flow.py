from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm import fit
from pyronorm.errors import OptionError
from pyronorm.guides import Flow, Paired
from pyronorm.infer import as_posterior
from pyronorm.priors import Standard
from tests.guides.cases import make_model
from tests.guides.conjugate import Conjugate


def randomized(**options) -> Flow:
    guide = Flow(make_model(), **options)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_().mul_(0.2)
    return guide.double()


def push(guide, e):
    """The definition, step by step: shifts and log scales of standard normal values."""
    for network in guide.flows:
        mean, log_scale = network(e)
        e = mean + log_scale.exp() * e
    return guide.loc + guide.log_std.exp() * e


@pytest.mark.parametrize("num_flows", [1, 2, 3])
def test_density_of_a_draw_by_the_full_jacobian(num_flows):
    guide = randomized(num_flows=num_flows, hidden=25)
    torch.manual_seed(3)
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    torch.manual_seed(3)
    e = torch.randn(20, dtype=torch.float64)
    latents = torch.cat([trace.nodes["shift"]["value"], trace.nodes["scale"]["value"].log()])
    torch.testing.assert_close(latents, push(guide, e))
    jacobian = torch.autograd.functional.jacobian(lambda e: push(guide, e), e)
    log_q = torch.distributions.Normal(0, 1).log_prob(e).sum() - jacobian.slogdet().logabsdet
    expected = log_q - trace.nodes["scale"]["value"].log().sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_density_of_given_values_inverts_the_flow():
    guide = randomized().float()
    trace = poutine.trace(guide).get_trace()
    # another call has another memory, so nothing is remembered of the draw
    value = trace.nodes["latents"]["value"].clone()
    again = poutine.trace(poutine.condition(guide, {"latents": value})).get_trace()
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum(), rtol=1e-5, atol=1e-4)


def test_a_draw_costs_one_pass_of_each_network(monkeypatch):
    guide = randomized(num_flows=3)
    calls = []
    for network in guide.flows:
        network.register_forward_hook(lambda *_: calls.append(1))
    poutine.trace(guide).get_trace().compute_log_prob()
    assert len(calls) == 3


def test_every_component_depends_on_every_other_through_two_flows():
    def dependence(guide):  # rectifiers switch parts of it off at any one point
        points = torch.randn(30, 20, dtype=torch.float64)
        jacobians = [
            torch.autograd.functional.jacobian(lambda e: push(guide, e), e) for e in points
        ]
        return torch.stack(jacobians).abs().sum(0)

    assert (dependence(randomized(num_flows=2)) > 0).all()
    one = dependence(randomized(num_flows=1))
    assert torch.equal(one > 0, torch.ones(20, 20).tril().bool())


def test_starts_as_independent_gaussians():
    model = make_model()
    guide = Flow(model, init_std=0.3)
    draws = as_posterior(guide, "test").draw(model, 7)
    values = torch.cat([draws.shift, draws.scale.log()], -1)
    expected = torch.distributions.Normal(0, 0.3).log_prob(values).sum(1) - values[:, 10:].sum(1)
    torch.testing.assert_close(draws.log_density, expected)


def test_both_elbos_agree():
    model = make_model()
    guide = Flow(model)
    x, y = torch.randn(4, 5), torch.randint(3, (4,))
    losses = []
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(1)
        losses.append(elbo.loss(model, guide, x, y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fit_trains_every_parameter():
    model = make_model(prior=Standard(0.3, 0.3))
    guide = Flow(model)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    x = torch.randn(50, 5)
    fit(model, guide, (x, (x[:, 0] > 0).long()), epochs=3)
    for name, parameter in guide.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.slow
def test_it_comes_closer_to_a_skewed_posterior_than_a_gaussian():
    problem = Conjugate(Standard(1.0, 1.0), num_data=6, offset=1.0)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=2)
    paired = Paired(problem.model).double()
    flow = Flow(problem.model, num_flows=2, hidden=16).double()
    for guide in (paired, flow):
        problem.train(guide, elbo, steps=400, lr=0.03)
    evidence = problem.log_joint.logsumexp((0, 1)).item() + math.log(problem.area)
    many = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=2)
    gap = evidence + many.loss(problem.model, flow, problem.x, problem.y)
    gap_of_paired = evidence - problem.elbo(paired)
    # the estimate is good to 0.005
    assert -0.01 < gap < 0.7 * gap_of_paired


def test_errors():
    model = make_model()
    with pytest.raises(OptionError, match="num_flows must be at least 1, an integer, got 0"):
        Flow(model, num_flows=0)
    with pytest.raises(OptionError, match="hidden must be at least 20, the number of latents"):
        Flow(model, hidden=19)
    with pytest.raises(OptionError, match="init_std must be positive"):
        Flow(model, init_std=math.inf)
