from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm import fit
from pyronorm.errors import OptionError
from pyronorm.guides import BatchNoise as Law
from pyronorm.guides import MeanField
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import make_model


def test_draws_follow_the_parameters():
    guide = MeanField(make_model())
    parameters = {
        "shift_loc": torch.randn(10),
        "shift_log_std": torch.randn(10) * 0.3,
        "log_scale_loc": torch.randn(10),
        "log_scale_log_std": torch.randn(10) * 0.3,
    }
    guide.load_state_dict(guide.state_dict() | parameters)
    nodes = poutine.trace(guide).get_trace().nodes
    shift, scale = (nodes[s]["fn"].base_dist for s in ("shift", "scale"))
    torch.testing.assert_close(shift.loc, parameters["shift_loc"])
    torch.testing.assert_close(shift.scale, parameters["shift_log_std"].exp())
    torch.testing.assert_close(scale.loc, parameters["log_scale_loc"])
    torch.testing.assert_close(scale.scale, parameters["log_scale_log_std"].exp())


def test_starts_at_the_neutral_latents():
    guide = MeanField(make_model(), init_std=0.3)
    shift = poutine.trace(guide).get_trace().nodes["shift"]["fn"].base_dist
    torch.testing.assert_close(shift.loc, torch.zeros(10))
    torch.testing.assert_close(shift.scale, torch.full((10,), 0.3))


@pytest.mark.parametrize("n", [8.0, 32.0])
def test_from_batch_size_has_the_moments_of_batch_noise(n):
    model = make_model()
    guide, law = MeanField.from_batch_size(model, n), Law(model, n)
    draws = torch.stack([law()["scale"].log() for _ in range(2000)]).flatten()
    nodes = poutine.trace(guide).get_trace().nodes
    shift, scale = (nodes[s]["fn"].base_dist for s in ("shift", "scale"))
    torch.testing.assert_close(shift.scale, torch.full((10,), n**-0.5))
    # 20,000 draws, 4 standard errors
    assert abs(scale.loc[0].item() - draws.mean().item()) < 4 * draws.std().item() / 141
    assert scale.scale[0].item() == pytest.approx(draws.std().item(), rel=4 / 141)


@pytest.mark.parametrize("prior", [Standard(0.5, 0.7), BatchNoise(16.0), ScaleInvariant()])
def test_analytic_kl_agrees_with_sampling(prior):
    model = make_model(prior=prior)
    guide = MeanField(model, init_std=0.2)
    x, y = torch.randn(4, 5), torch.randint(3, (4,))

    def kl(elbo, seeds):
        total = []
        for seed in seeds:
            torch.manual_seed(seed)
            with torch.no_grad():
                loss = elbo.differentiable_loss(model, guide, x, y)
            torch.manual_seed(seed)
            trace = poutine.trace(guide).get_trace(x, y)
            model_trace = poutine.trace(poutine.replay(model, trace)).get_trace(x, y)
            model_trace.compute_log_prob()
            total.append(loss + model_trace.nodes["y"]["log_prob_sum"].detach())
        return torch.stack(total)

    analytic, sampled = kl(TraceMeanField_ELBO(), range(2)), kl(Trace_ELBO(), range(300))
    torch.testing.assert_close(analytic[0], analytic[1])  # it does not depend on the draw
    # 4 standard errors of the sampled one
    assert abs(analytic[0] - sampled.mean()) < 4 * sampled.std() / math.sqrt(300)


def test_neutral_learns_the_noise_alone():
    model = make_model()
    guide = MeanField.from_batch_size(model, 9.0, neutral=True)
    assert {n for n, _ in guide.named_parameters()} == {"shift_log_std", "log_scale_log_std"}
    free = MeanField.from_batch_size(model, 9.0)
    torch.testing.assert_close(guide.log_scale_log_std, free.log_scale_log_std)
    x = torch.randn(50, 5)
    fit(model, guide, (x, (x[:, 0] > 0).long()), epochs=2, train_network=False)
    assert (guide.log_scale_log_std != free.log_scale_log_std).all()
    nodes = poutine.trace(guide).get_trace().nodes
    for site in ("shift", "scale"):
        assert torch.equal(nodes[site]["fn"].base_dist.loc, torch.zeros(10))
    with pytest.raises(RuntimeError, match="Unexpected key.*shift_loc"):
        guide.load_state_dict(free.state_dict())


@pytest.mark.parametrize("init_std", [0.0, -1.0, math.inf])
def test_a_width_must_be_positive(init_std):
    with pytest.raises(OptionError, match="init_std must be positive"):
        MeanField(make_model(), init_std=init_std)
