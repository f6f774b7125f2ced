from __future__ import annotations

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from pyronorm.errors import OptionError
from pyronorm.infer.elbo import KLWeight, default_elbo
from pyronorm.priors import BatchNoise
from tests.guides.cases import make_guide, make_model


def test_default_estimator_suits_the_guide():
    model = make_model()
    assert isinstance(default_elbo(make_guide("MeanField", model)), TraceMeanField_ELBO)
    assert isinstance(default_elbo(make_guide("BatchNoise", model)), TraceMeanField_ELBO)
    for guide in (make_guide("LowRank", model), AutoNormal(model)):
        estimator = default_elbo(guide)
        assert isinstance(estimator, Trace_ELBO)
        assert not isinstance(estimator, TraceMeanField_ELBO)
    with pytest.raises(OptionError, match="MonteCarloBatchNorm is known only through its draws"):
        default_elbo(make_guide("MonteCarloBatchNorm", model))


@pytest.mark.parametrize("case", ["MeanField", "LowRank", "BatchNoise"])
@pytest.mark.parametrize("draws", [1, 3])
def test_weight_scales_the_kl_part_and_nothing_else(case, draws):
    model = make_model(draws=draws, prior=BatchNoise(8))
    guide = make_guide(case, model)
    x, y = torch.randn(6, 5), torch.randint(3, (6,))

    def loss(weight):
        torch.manual_seed(1)
        with KLWeight(weight):
            return default_elbo(guide).differentiable_loss(model, guide, x, y).detach()

    torch.manual_seed(1)
    guide_trace = poutine.trace(guide).get_trace(x, y)
    trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(x, y)
    trace.compute_log_prob()
    torch.testing.assert_close(loss(0.0), -trace.nodes["y"]["log_prob_sum"].detach())
    full, data = loss(1.0), loss(0.0)
    torch.testing.assert_close(loss(0.25), data + 0.25 * (full - data), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(OptionError, match="kl_weight must be at least 0"):
        KLWeight(weight)
