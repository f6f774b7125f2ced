"""Running a model never changes it: the state dict is bit-identical afterwards, in every mode."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO

from pyronorm import (
    NormalizationModel,
    convert,
    estimate_population_statistics,
    guides,
    predict,
    to_arviz,
)
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import (
    RMS,
    Analytic,
    Batch,
    BatchWhitening,
    Exclusive,
    Ghost,
    Group,
    GroupWhitening,
    Instance,
    Layer,
    Population,
    SyncBatch,
    Weight,
)
from tests.nets import SHAPES, conv_net, train_briefly

NORMALIZERS = [
    Batch(),
    Population(),
    Group(2),
    Layer(),
    Instance(),
    Weight(),
    RMS(),
    Ghost(4),
    Exclusive(),
    SyncBatch(),
]
NORMALIZERS += [BatchWhitening(2), GroupWhitening(2), Analytic()]
X, Y = torch.randn(6, *SHAPES[1]), torch.randint(3, (6,))


def svi_step(model, guide):
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    for _ in range(2):
        svi.step(X, Y)


def evaluate_loss(model, guide):
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO(num_particles=2))
    svi.evaluate_loss(X, Y)


def nuts(model, guide):
    kernel = NUTS(model, max_tree_depth=2)
    MCMC(kernel, num_samples=3, warmup_steps=3, disable_progbar=True).run(X, Y)


def predictive(model, guide):
    Predictive(model, guide=guide, num_samples=3)(X)


def elbo_module(model, guide):
    Trace_ELBO()(model, guide)(X, Y).backward()


RUNS = {
    "SVI.step": svi_step,
    "evaluate_loss": evaluate_loss,
    "ELBOModule": elbo_module,
    "NUTS": nuts,
    "Predictive": predictive,
    "predict": lambda model, guide: predict(model, guide, X, 3),
    "to_arviz": lambda model, guide: to_arviz(model, guide, (X, Y), 3),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("run", RUNS)
def test_state_dict_is_bit_identical(run, normalizer, training):
    original = train_briefly(conv_net(1), SHAPES[1], steps=2)
    network = convert(original, normalizer, example_input=X)
    if isinstance(normalizer, BatchWhitening):
        estimate_population_statistics(network, X)  # the original has no covariances
    # Frozen, so that not even a step may touch anything but the guide.
    network.requires_grad_(False)
    model = NormalizationModel(network, Categorical(), 60).train(training)
    guide = guides.MeanField(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    RUNS[run](model, guide)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [m.training for m in model.modules()] == modes
    assert all(layer.latents is None for layer in model.network.layers)


def test_the_same_check_catches_torch_batch_norm():
    """The check can fail: ordinary batch normalization moves its averages."""
    network = conv_net(1)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(X)
    assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())
