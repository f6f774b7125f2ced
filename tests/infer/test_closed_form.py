"""The closed form is Pyro's ELBO: the same value and gradient for the same draws."""

from __future__ import annotations

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyronorm import NormalizationModel, guides, likelihoods
from pyronorm.infer.closed_form import ClosedForm
from pyronorm.infer.elbo import KLWeight, default_elbo
from pyronorm.latents import LatentNetwork
from tests.device.cases import PRIORS
from tests.device.cases import make_model as make_conv_model
from tests.guides.cases import CASES, make_guide, make_model
from tests.normalizers.cases import NORMALIZERS

N = 6
LIKELIHOODS = {
    "classes": lambda: likelihoods.Categorical(),
    "missing classes": lambda: likelihoods.Categorical(ignore_index=1),
    "weights of classes": lambda: likelihoods.Categorical(weight=torch.tensor([1.0, 2.0, 0.5])),
    "soft classes": lambda: likelihoods.Categorical(),
    "weights of examples": lambda: likelihoods.Categorical(),
    "tempered": lambda: likelihoods.Categorical().tempered(1.7),
    "Bernoulli": lambda: likelihoods.Bernoulli(),
    "Normal": lambda: likelihoods.Normal(0.5, learned=True),
    "missing values": lambda: likelihoods.Normal(0.5, learned=True),
    "StudentT": lambda: likelihoods.StudentT(4.0, 0.5, learned=True),
    "Poisson": lambda: likelihoods.Poisson(),
    "NegativeBinomial": lambda: likelihoods.NegativeBinomial(2.0, learned=True),
    "MultivariateNormal": lambda: likelihoods.MultivariateNormal(
        torch.full((3,), 0.5), torch.ones(3, 1) / 4, learned=True
    ),
    "Ordinal": lambda: likelihoods.Ordinal(3),
    "function": lambda: likelihoods.Likelihood.of(lambda f: dist.Laplace(f, 1.0)),
}


def targets(name: str) -> tuple[torch.Tensor, ...]:
    classes, values = torch.randint(3, (N,)), torch.randn(N, 3).double()
    if name == "soft classes":
        return (values.softmax(-1),)
    if name == "weights of examples":
        return classes, torch.rand(N).double()
    if "classes" in name or name == "tempered":
        return (classes,)
    if name == "Ordinal":
        return (torch.randint(3, (N, 3)),)
    if name in ("Poisson", "NegativeBinomial"):
        return (torch.randint(5, (N, 3)).double(),)
    if name == "missing values":
        values[0, 1] = values[2] = torch.nan
    return ((values > 0).double() if name == "Bernoulli" else values,)


def check(model: NormalizationModel, guide, x, *rest, weight: float = 0.7) -> None:
    parameters = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    found = []
    for values in (False, True):
        pyro.set_rng_seed(2)
        if values:
            loss = ClosedForm(model, guide)(weight, x, *rest)[0] * model.num_data
        else:
            with KLWeight(weight):
                loss = default_elbo(guide).differentiable_loss(model, guide, x, *rest)
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        found.append((loss.detach(), gradients))
    (expected, expected_gradients), (loss, gradients) = found
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert any(gradient is not None for gradient in gradients)
    for name, ours, theirs in zip(parameters, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


GUIDES = [case for case in CASES if case != "MonteCarloBatchNorm"]


@pytest.fixture(scope="module")
def networks() -> dict[str, LatentNetwork]:
    torch.manual_seed(0)
    return {name: make_conv_model(name).network.double() for name in NORMALIZERS}


@pytest.mark.parametrize("case", GUIDES)
def test_every_guide_with_every_normalizer(networks, case):
    x, likes, law = torch.randn(N, 2, 5, 4).double(), [*LIKELIHOODS], [*PRIORS]
    for k, network in enumerate(networks.values()):
        i = k + GUIDES.index(case)
        like = likes[i % len(likes)]
        model = NormalizationModel(network, LIKELIHOODS[like](), 24, PRIORS[law[i % len(law)]])
        model.double().train()
        check(model, make_guide(case, model), x, *targets(like))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("prior", PRIORS)
def test_every_guide_with_every_prior(prior, draws):
    x = torch.randn(N, 5).double()
    model = make_model(draws, PRIORS[prior]).double()
    for case in GUIDES:
        check(model, make_guide(case, model), x, torch.randint(3, (N,)))


@pytest.mark.parametrize("like", LIKELIHOODS)
def test_every_likelihood(networks, like):
    x = torch.randn(N, 2, 5, 4).double()
    for name, prior, case in product(("Batch", "Group"), PRIORS, ("MeanField", "LowRank")):
        model = NormalizationModel(networks[name], LIKELIHOODS[like](), 24, PRIORS[prior])
        model.double().train()
        check(model, make_guide(case, model), x, *targets(like))


@pytest.mark.parametrize("case", ["Point", "BatchNoise", "Fixed"])
def test_what_is_kept_follows_its_settings(case):
    x, y = torch.randn(N, 5).double(), torch.randint(3, (N,))
    model = make_model().double()
    guide = make_guide(case, model)
    objective = ClosedForm(model, guide)
    for draws, size in ((1, 16.0), (1, 16.0), (1, 4.0), (3, 4.0), (1, 16.0)):
        model.draws = draws
        model.network.train(draws == 1)
        if case == "BatchNoise":
            guide.batch_size = size
        pyro.set_rng_seed(2)
        expected = default_elbo(guide).differentiable_loss(model, guide, x, y)
        pyro.set_rng_seed(2)
        loss = objective(1.0, x, y)[0] * model.num_data
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


class Growing(guides.BatchNoise):
    """A law of one's own, that follows from more than the batch size."""

    def law(self):
        self.batch_size = self.batch_size + 1
        return super().law()


def test_a_law_that_is_overridden_is_made_each_time():
    model = make_model().double()
    guide = Growing(model, 16.0)
    objective = ClosedForm(model, guide)
    x, y = torch.randn(N, 5).double(), torch.randint(3, (N,))
    for _ in range(3):
        objective(1.0, x, y)
    assert guide.batch_size == 19.0


@pytest.mark.slow
@pytest.mark.parametrize("case", GUIDES)
def test_everything_with_everything(networks, case):
    x = torch.randn(N, 2, 5, 4).double()
    for network, like, prior in product(networks.values(), LIKELIHOODS, PRIORS.values()):
        model = NormalizationModel(network, LIKELIHOODS[like](), 24, prior).double().train()
        check(model, make_guide(case, model), x, *targets(like))
