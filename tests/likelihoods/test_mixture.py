"""Moments and entropies of mixtures against integrals, sums and Monte Carlo."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from scipy.integrate import trapezoid

from pyronorm.likelihoods.mixture import (
    conditional_mean,
    entropies,
    mixture_moments,
    mixture_samples,
    unwrap,
)

DRAWS, BATCH = 6, 4


def loc(scale=1.5):
    return scale * torch.randn(DRAWS, BATCH, dtype=torch.float64)


def integrated(components, low, high):
    """Entropy and information of an equal mixture of scipy's distributions, on a grid."""
    y = np.linspace(low, high, 40_001)
    p = np.stack([component.pdf(y) for component in components])
    q = p.mean(0)

    def entropy(density):
        return -trapezoid(density * np.log(np.maximum(density, 1e-300)), y)

    total = entropy(q)
    return total, total - np.mean([entropy(density) for density in p])


def summed(components, most=2000):
    y = np.arange(most)
    p = np.stack([component.pmf(y) for component in components])
    total = scipy.stats.entropy(p.mean(0))
    return total, total - np.mean([scipy.stats.entropy(density) for density in p])


def test_normal_of_several_widths_is_near_the_integral():
    mean, std = loc(), (0.5 * loc(1)).exp()
    entropy, information = entropies(dist.Normal(mean, std))
    for i in range(BATCH):
        parts = [
            scipy.stats.norm(m, s)
            for m, s in zip(mean[:, i].tolist(), std[:, i].tolist(), strict=True)
        ]
        expected = integrated(parts, -30, 30)
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected, abs=0.05)


def test_students_t_is_near_the_integral():
    mean = loc()
    entropy, information = entropies(dist.StudentT(5.0, mean, 0.7))
    for i in range(BATCH):
        parts = [scipy.stats.t(5, m, 0.7) for m in mean[:, i].tolist()]
        expected = integrated(parts, -200, 200)
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_summed_exactly(dtype):
    rate = (1 + loc(0.7)).exp().to(dtype)
    entropy, information = entropies(dist.Poisson(rate))
    assert entropy.dtype == dtype
    for i in range(BATCH):
        expected = summed([scipy.stats.poisson(r) for r in rate[:, i].tolist()])
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected, abs=1e-4)


def test_negative_binomial_counts_are_summed():
    logits = loc(0.5)
    entropy, information = entropies(dist.NegativeBinomial(2.5, logits=logits))
    for i in range(BATCH):
        parts = [scipy.stats.nbinom(2.5, 1 - p) for p in logits[:, i].sigmoid().tolist()]
        expected = summed(parts)
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected, abs=1e-4)


def test_large_counts_are_sampled():
    rate = (8 + loc(0.3)).exp()  # about 3,000
    entropy, information = entropies(dist.Poisson(rate))
    for i in range(BATCH):
        parts = [scipy.stats.poisson(r) for r in rate[:, i].tolist()]
        expected = summed(parts, 20_000)
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected, abs=0.1)


def test_finite_support_is_exact():
    logits = loc()
    entropy, information = entropies(dist.Binomial(7, logits=logits))
    for i in range(BATCH):
        parts = [scipy.stats.binom(7, p) for p in logits[:, i].sigmoid().tolist()]
        expected = summed(parts, 8)
        assert (float(entropy[i]), float(information[i])) == pytest.approx(expected)


def test_one_draw_has_the_closed_form_and_no_information():
    mean = torch.randn(1, BATCH, 3, dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
    cases = [dist.StudentT(5.0, mean, 2.0), dist.MultivariateNormal(mean[..., :2], covariance)]
    for case in cases:
        entropy, information = entropies(case)
        torch.testing.assert_close(entropy, case.entropy()[0])
        assert float(information.abs().max()) < 1e-9


def test_equal_draws_far_apart_carry_their_number():
    mean = torch.tensor([0.0, 1e4, 2e4]).double()[:, None].expand(3, BATCH)
    entropy, information = entropies(dist.Laplace(mean, 2.0))
    torch.testing.assert_close(information, torch.full_like(information, math.log(3)))
    torch.testing.assert_close(entropy, information + 1 + math.log(4.0))


def test_more_draws_than_points():
    mean = torch.randn(1500, 2, dtype=torch.float64)
    entropy, _ = entropies(dist.StudentT(30.0, mean, 0.5))
    expected = scipy.stats.norm(0, math.sqrt(1 + 0.25 * 30 / 28)).entropy()
    torch.testing.assert_close(
        entropy, torch.full((2,), float(expected)).double(), atol=0.1, rtol=0
    )


CASES = [
    lambda o: dist.Normal(o, o.exp()),
    lambda o: dist.StudentT(9.0, o, 0.5),
    lambda o: dist.Poisson(o.exp()),
    lambda o: dist.Gamma(2.0, o.exp()),
    lambda o: dist.Bernoulli(logits=o),
    lambda o: dist.TransformedDistribution(
        dist.Normal(o, 0.3), [dist.transforms.SigmoidTransform()]
    ),
]


@pytest.mark.parametrize("make", CASES)
def test_moments_are_those_of_samples(make):
    """Within five standard errors of 200,000 samples; the last knows no mean and is sampled itself."""
    distribution = make(loc(0.7))
    samples = mixture_samples(distribution, 200_000, seed=1).double()
    mean, variance = mixture_moments(distribution)
    slack = 20 if isinstance(distribution, dist.TransformedDistribution) else 1
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((mean - samples.mean(0)).abs() <= 5 * slack * error).all()
    squares = (samples - samples.mean(0)).square()
    error = squares.std(0) / math.sqrt(len(samples))
    assert ((variance - squares.mean(0)).abs() <= 5 * slack * error).all()


def test_classes_have_probabilities_for_a_mean():
    logits = torch.randn(DRAWS, BATCH, 3)
    classes = dist.Categorical(logits=logits)
    torch.testing.assert_close(conditional_mean(classes), logits.softmax(-1))
    torch.testing.assert_close(mixture_moments(classes)[0], logits.softmax(-1).mean(0))


def test_samples_leave_torchs_generator_alone_and_depend_on_the_seed_alone():
    distribution = dist.Normal(loc(), 1.0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (mixture_samples(distribution, 12, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (12, BATCH)
    assert mixture_samples(distribution, 3, 0).shape == (3, BATCH)


def test_unwrap():
    base = dist.Normal(torch.zeros(2, 3, 4), 1.0)
    assert unwrap(base.to_event(1).to_event(1)) is base
