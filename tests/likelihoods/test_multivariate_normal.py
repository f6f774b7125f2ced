"""Oracle: scipy's multivariate normal distribution."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import MultivariateNormal, Normal

BATCH = 5
STD, FACTOR = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([[1.0, 0.1], [-0.5, 0.2], [0.3, -0.4]])


@pytest.mark.parametrize("learned", [False, True])
def test_log_prob_and_summaries_are_scipys(learned):
    likelihood = MultivariateNormal(STD, FACTOR, learned=learned).double()
    output, y = torch.randn(6, BATCH, 3).double(), torch.randn(BATCH, 3).double()
    covariance = (FACTOR @ FACTOR.T + torch.diag(STD**2)).numpy()
    found = likelihood.log_prob(output, y, 1).detach()
    for s in range(6):
        for i in range(BATCH):
            theirs = scipy.stats.multivariate_normal(output[s, i].numpy(), covariance)
            assert float(found[s, i]) == pytest.approx(theirs.logpdf(y[i].numpy()), rel=1e-5)
    single = likelihood.predict(output[:1])
    np.testing.assert_allclose(single.entropy, np.full(BATCH, theirs.entropy()), rtol=1e-5)
    np.testing.assert_allclose(single.variance[0], covariance.diagonal(), rtol=1e-5)
    np.testing.assert_allclose(likelihood.covariance.detach(), covariance, rtol=1e-5)


def test_entropy_of_the_mixture_is_the_integral_of_one_dimension():
    likelihood = MultivariateNormal(torch.tensor([0.5]), torch.tensor([[1.0]]))
    output = 3 * torch.randn(6, BATCH, 1)
    found = likelihood.predict(output)
    expected = Normal(float(np.sqrt(1.25))).predict(output[..., 0])
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=0.1)
    torch.testing.assert_close(
        found.mutual_information, expected.mutual_information, rtol=0, atol=0.1
    )


def test_covariance_is_learned():
    truth = MultivariateNormal(STD, FACTOR[:, :1])
    y = truth.distribution(torch.zeros(4000, 3)).sample()
    likelihood = MultivariateNormal(torch.ones(3), 0.1 * torch.ones(3, 1), learned=True)
    optimizer = torch.optim.LBFGS(
        likelihood.parameters(), max_iter=200, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -likelihood.log_prob(torch.zeros(4000, 3), y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(likelihood.covariance.detach(), truth.covariance, rtol=0.1, atol=0.1)


def test_refusals():
    with pytest.raises(ShapeError, match=r"std of shape \(target,\) and factor .* got \(3,\) and"):
        MultivariateNormal(STD, FACTOR.T)
    with pytest.raises(OptionError, match="std must be positive"):
        MultivariateNormal(-STD, FACTOR)
    with pytest.raises(OptionError, match="factor must be finite"):
        MultivariateNormal(STD, FACTOR / 0)
    MultivariateNormal(STD, 0 * FACTOR)
    with pytest.raises(OptionError, match="a column of a learned factor is 0"):
        MultivariateNormal(STD, FACTOR * torch.tensor([0.0, 1.0]), learned=True)
    for shape in ((BATCH,), (BATCH, 2), (BATCH, 3, 4)):
        with pytest.raises(ShapeError, match="MultivariateNormal: expected an output of shape"):
            MultivariateNormal(STD, FACTOR).distribution(torch.zeros(shape))


def test_dense_outputs_are_one_vector_for_each_position():
    likelihood = MultivariateNormal(STD, FACTOR)
    output, y = torch.randn(6, BATCH, 2, 4, 3), torch.randn(BATCH, 2, 4, 3)
    y[0, 0, 0, 1] = y[1, 1] = float("nan")  # one target, and a whole row of vectors
    flat = likelihood.log_prob(output.flatten(1, 3), y.flatten(0, 2), 1)
    expected = flat.unflatten(1, (BATCH, 8)).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(output, y, 1), expected)
    dense, plain = likelihood.predict(output), likelihood.predict(output.flatten(1, 3))
    for name in ("mean", "variance"):
        expected = getattr(plain, name).unflatten(0, (BATCH, 2, 4))
        torch.testing.assert_close(getattr(dense, name), expected)
    assert dense.entropy.shape == (BATCH, 2, 4)
    assert dense.sample(2).shape == (2, BATCH, 2, 4, 3)
    found, position = dense.metrics(y), plain.metrics(y.flatten(0, 2))
    assert found["nll_per_position"] == pytest.approx(position["nll"], rel=1e-5)
    for name in ("rmse", "coverage_90"):
        assert found[name] == pytest.approx(position[name], rel=1e-5)
    assert found["crps"] == pytest.approx(position["crps"], rel=0.05)  # by samples


def test_a_convolutional_network_gives_a_vector_for_each_pixel():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 3, 1))
    model = pn.NormalizationModel(
        pn.convert(network),
        MultivariateNormal(STD, FACTOR, learned=True),
        BATCH,
        output=lambda f: f.movedim(1, -1),
    )
    guide = pn.guides.MeanField(model)
    x, y = torch.randn(BATCH, 2, 3, 3), torch.randn(BATCH, 3, 3, 3)
    y[0, 0, 0] = float("nan")
    pn.fit(model, guide, (x, y), epochs=1, progress=False)
    assert pn.predict(model, guide, x, 4).mean.shape == (BATCH, 3, 3, 3)
    assert pn.evaluate(model, guide, (x, y), 4)["nll"] > 0
    assert pn.to_arviz(model, guide, (x, y), 4)["log_likelihood"]["y"].shape == (1, 4, BATCH)
