"""Oracles: scipy's inverse gamma and chi-square laws, numerical integration, Monte Carlo.

Monte Carlo means allow five standard errors (false alarms at 6e-7 each), goodness of fit p > 1e-4.
"""

import math

import numpy as np
import pyro
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro.distributions import Gamma, LogNormal, Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyronorm.distributions import DrawsOnly, ImproperFlat, ImproperLogUniform, InverseChi
from pyronorm.errors import NoDensityError, OptionError

DF_SCALE = [(0.8, 0.5), (3.0, 1.7), (7.0, 8**0.5), (31.5, 4.2), (127.0, 128**0.5)]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def scipy_log_density(x, df, scale):
    """X^2 is inverse gamma with shape df/2 and scale tau^2/2; 2x is the Jacobian."""
    return scipy.stats.invgamma.logpdf(x**2, df / 2, scale=scale**2 / 2) + np.log(2 * x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-4)])
@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_log_prob_matches_scipy(df, scale, dtype, tolerance):
    x = np.array([[0.3, 0.9, 1.1], [1.7, 4.0, 0.6]])
    d = InverseChi(torch.tensor(df, dtype=dtype), torch.tensor(scale, dtype=dtype))
    log_prob = d.log_prob(torch.tensor(x, dtype=dtype))
    assert log_prob.dtype == dtype
    np.testing.assert_allclose(
        log_prob, scipy_log_density(x, df, scale), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_density_integrates_to_one(df, scale):
    d = InverseChi(*f64(df, scale))
    t = torch.linspace(-6, 45, 100_001, dtype=torch.float64)  # x = exp(t)
    total = torch.trapezoid((d.log_prob(t.exp()) + t).exp(), t)
    assert total.item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("df", "scale"), [(3.0, 1.7), (7.0, 2.8), (31.5, 4.2), (1023.0, 32.0)])
def test_moments_match_integration(df, scale):
    law = scipy.stats.chi2(df)
    mean = law.expect(lambda y: scale / np.sqrt(y), epsabs=1e-13)
    spread = law.expect(lambda y: (scale / np.sqrt(y) - mean) ** 2, epsabs=1e-13)
    d = InverseChi(*f64(df, scale))
    assert d.mean.item() == pytest.approx(mean, rel=1e-6)
    # df = 3: the integrand has a heavy tail, scipy reaches four digits
    assert d.variance.item() == pytest.approx(spread, rel=1e-6 if df > 5 else 1e-4)


def test_moments_that_do_not_exist_are_infinite():
    d = InverseChi(f64(0.7, 1.0, 1.5, 2.0, 2.5), f64(2.0))
    assert d.mean.isinf().tolist() == [True, True, False, False, False]
    assert d.variance.isinf().tolist() == [True, True, True, True, False]
    # df = 2: Γ(1/2) / (sqrt 2 Γ(1)) = sqrt(π/2)
    assert d.mean[3].item() == pytest.approx(2 * math.sqrt(math.pi / 2))


@pytest.mark.parametrize("n", [1024.0, 10_000.0])
def test_float32_variance_of_large_batches(n):
    df, scale = torch.tensor(n - 1), torch.tensor(math.sqrt(n))
    exact = InverseChi(df.double(), scale.double()).variance
    torch.testing.assert_close(InverseChi(df, scale).variance.double(), exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_samples_follow_the_law(df, scale, dtype):
    d = InverseChi(torch.tensor(df, dtype=dtype), torch.tensor(scale, dtype=dtype))
    chi2 = (scale / d.sample((20_000,)).double().numpy()) ** 2
    assert scipy.stats.kstest(chi2, scipy.stats.chi2(df).cdf).pvalue > 1e-4  # rate of false alarms


@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_pathwise_gradients_follow_the_quantiles(df, scale):
    """At a fixed probability the draw is the quantile, whose derivative in df is differenced."""
    dfs = torch.full((500,), df, dtype=torch.float64, requires_grad=True)
    scales = torch.full((500,), scale, dtype=torch.float64, requires_grad=True)
    x = InverseChi(dfs, scales).rsample()
    x.sum().backward()
    torch.testing.assert_close(scales.grad, x.detach() / scale)
    chi2 = (scale / x.detach().numpy()) ** 2
    p, step = scipy.stats.chi2.cdf(chi2, df), 1e-4 * df
    middle = (p > 1e-3) & (p < 1 - 1e-3)  # where scipy's quantiles can be differenced
    up, down = (scale / np.sqrt(scipy.stats.chi2.ppf(p, df + s)) for s in (step, -step))
    expected = (up - down) / (2 * step)
    np.testing.assert_allclose(dfs.grad[middle], expected[middle], rtol=5e-3)


def test_pathwise_gradients_average_to_those_of_the_mean():
    df, scale = f64(7.0, 12.0).requires_grad_(), f64(2.5, 4.0).requires_grad_()
    expected = torch.autograd.grad(InverseChi(df, scale).mean.sum(), (df, scale))
    leaves = [p.detach().expand(40_000, 2).clone().requires_grad_() for p in (df, scale)]
    draws = torch.autograd.grad(InverseChi(*leaves).rsample().sum(), leaves)
    for draw, value in zip(draws, expected, strict=True):
        assert ((draw.mean(0) - value).abs() < 5 * draw.std(0) / 200).all()


def test_log_prob_gradcheck():
    df, scale, x = (f64(*v).requires_grad_() for v in [(1.5, 9.0), (0.7, 3.0), (0.4, 1.2)])
    assert torch.autograd.gradcheck(lambda a, b, c: InverseChi(a, b).log_prob(c), (df, scale, x))


def test_batch_shapes_and_expand():
    d = InverseChi(f64(3.0, 5.0, 9.0), f64([1.0], [2.0]))
    assert d.batch_shape == d.df.shape == d.scale.shape == (2, 3)
    assert d.rsample((4, 5)).shape == d.log_prob(torch.ones(4, 5, 1, 1)).shape == (4, 5, 2, 3)
    wide = d.expand((4, 2, 3))
    assert wide.batch_shape == wide.df.shape == wide.scale.shape == wide.sample().shape == (4, 2, 3)
    assert torch.equal(wide.log_prob(f64(1.3))[3], d.log_prob(f64(1.3)))
    event = d.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((2,), (3,))
    assert event.expand((5, 2)).sample().shape == (5, 2, 3)
    torch.testing.assert_close(event.log_prob(d.mean), d.log_prob(d.mean).sum(-1))


def test_precision_is_the_law_of_the_inverse_square():
    d, x = InverseChi(f64(3.0, 8.5), f64(1.4, 2.0)), f64(0.4, 1.7)
    torch.testing.assert_close(d.precision().log_prob(x**-2), d.log_prob(x) - torch.log(2 / x**3))


@pytest.mark.parametrize(("df", "scale"), [(0.0, 1.0), (-2.0, 1.0), (3.0, 0.0), (3.0, math.nan)])
def test_parameters_out_of_range(df, scale):
    with pytest.raises(ValueError, match=f"parameter {'df' if df <= 0 else 'scale'} .* InverseChi"):
        InverseChi(df, scale)


@pytest.mark.parametrize("d", [InverseChi(3.0, 1.0), ImproperLogUniform(torch.zeros(2))])
@pytest.mark.parametrize("expanded", [False, True])
def test_values_out_of_support(d, expanded):
    with pytest.raises(ValueError, match="within the support"):
        (d.expand((3, 2)) if expanded else d).log_prob(torch.tensor([1.0, -1.0]))


KL = {
    "inverse chi, inverse chi": (
        InverseChi(f64([2.5, 7.0, 31.0], [4.0, 9.5, 120.0]), f64([1.5, 2.8, 5.0], [1, 3, 11])),
        InverseChi(f64([4.0, 3.0, 20.0], [4.0, 12.0, 90.0]), f64(2.0, 1.3, 4.5)),
    ),
    "log normal, inverse chi": (
        LogNormal(f64([-0.3, 0.1, 0.4], [0.0, 0.2, -0.5]), f64(0.2, 0.5, 0.35)),
        InverseChi(f64([3.0, 7.0, 20.0], [1.5, 31.0, 8.0]), f64(1.5, 2.2, 5.0)),
    ),
    "log normal, gamma": (
        LogNormal(f64([-0.3, 0.1, 1.4], [0.0, 2.2, -0.5]), f64(0.2, 0.5, 0.35)),
        Gamma(f64([0.7, 2.0, 20.0], [1.5, 31.0, 8.0]), f64(0.5, 2.2, 5.0)),
    ),
    "inverse chi, log normal": (
        InverseChi(f64([3.0, 7.0, 20.0], [9.5, 31.0, 120.0]), f64(1.5, 2.2, 5.0)),
        LogNormal(f64([-0.3, 0.1, 0.4], [0.0, 0.2, -0.5]), f64(0.2, 0.5, 0.35)),
    ),
    "inverse chi, log uniform": (
        InverseChi(f64([3.0, 7.0, 20.0], [9.5, 31.0, 120.0]), f64(1.5, 2.2, 5.0)),
        ImproperLogUniform(torch.zeros(2, 3, dtype=torch.float64)),
    ),
    "normal, flat": (
        Normal(f64([-0.3, 0.1, 2.0], [0.0, 0.2, -0.5]), f64(0.2, 1.5, 0.35)),
        ImproperFlat(torch.zeros(2, 3, dtype=torch.float64)),
    ),
    "log normal, log uniform": (
        LogNormal(f64([-0.3, 0.1, 2.0], [0.0, 0.2, -0.5]), f64(0.2, 1.5, 0.35)),
        ImproperLogUniform(torch.zeros(2, 3, dtype=torch.float64)),
    ),
}
kl_pairs = pytest.mark.parametrize(("q", "p"), KL.values(), ids=KL)


@kl_pairs
def test_kl_matches_integration(q, p):
    t = torch.linspace(-20, 20, 80_001, dtype=torch.float64)[:, None, None]
    # Positive variables are integrated over t = log x.
    x, jacobian = (t, 0.0) if isinstance(q, Normal) else (t.exp(), t)
    log_q = q.log_prob(x)
    log_ratio = log_q - p.log_prob(x.expand(-1, 2, 3))
    weight = (log_q + jacobian).exp()
    # Where q underflows to 0, log p is -inf at most as fast as exp(t): the product is 0.
    expected = torch.trapezoid(torch.where(weight > 0, weight * log_ratio, 0.0), t, dim=0)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-7, atol=1e-8)


@kl_pairs
def test_kl_matches_monte_carlo(q, p):
    x = q.sample((100_000,))
    log_ratio = q.log_prob(x) - p.log_prob(x)
    error = log_ratio.std(0) / math.sqrt(len(x))
    assert ((log_ratio.mean(0) - kl_divergence(q, p)).abs() < 5 * error).all()


@kl_pairs
@pytest.mark.parametrize("events", [1, 2])
def test_kl_of_independents_sums_events(q, p, events):
    expected = kl_divergence(q, p).sum(tuple(range(-events, 0)))
    torch.testing.assert_close(kl_divergence(q.to_event(events), p.to_event(events)), expected)


@kl_pairs
def test_mean_field_elbo_uses_the_closed_form(q, p):
    def sample(d):
        return lambda: pyro.sample("z", d.to_event(2))

    loss = TraceMeanField_ELBO(num_particles=1).loss(sample(p), sample(q))
    assert loss == pytest.approx(kl_divergence(q, p).sum().item(), rel=1e-9)


@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_kl_with_itself_is_zero(df, scale):
    d = InverseChi(df, scale)
    assert kl_divergence(d, d).item() == 0.0


@pytest.mark.parametrize("improper", [ImproperFlat, ImproperLogUniform])
def test_improper_log_prob_shape_and_dtype(improper):
    d, x = improper(torch.randn(3).double()), f64([0.5, 2.0, 3.0], [4.0, 1.0, 0.1])
    expected = torch.zeros(2, 3).double() if improper is ImproperFlat else -torch.log(x)
    torch.testing.assert_close(d.log_prob(x), expected)
    wide = d.expand((2, 3))
    assert (type(wide), wide.batch_shape, wide.like.dtype) == (improper, (2, 3), torch.float64)
    torch.testing.assert_close(wide.to_event(1).log_prob(x), expected.sum(-1))


@pytest.mark.parametrize("improper", [ImproperFlat, ImproperLogUniform])
def test_improper_cannot_be_sampled(improper):
    d, event = improper(torch.zeros(3)), improper(torch.zeros(3)).to_event(1)
    for draw in (d.sample, d.rsample, event.sample, lambda: pyro.sample("z", event)):
        with pytest.raises(OptionError, match=f"{improper.__name__} is improper.*init_to_neutral"):
            draw()


def test_draws_only_yields_the_value():
    value = torch.randn(2, 3, 4, requires_grad=True)
    d = DrawsOnly(value, 1, "a bank")
    assert (d.batch_shape, d.event_shape, d.event_dim) == ((2, 3), (4,), 1)
    assert torch.equal(d.sample(), value)
    assert (torch.autograd.grad(d.rsample((5,)).sum(), value)[0] == 5.0).all()
    assert torch.equal(d.sample((5, 6)), value.expand(5, 6, 2, 3, 4))
    wide = d.expand((7, 2, 3))
    assert (wide.batch_shape, wide.event_shape, wide.source) == ((7, 2, 3), (4,), "a bank")
    assert torch.equal(wide.sample(), value.expand(7, 2, 3, 4))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_draws_only_has_no_density(elbo):
    d, prior = DrawsOnly(torch.randn(4), 1, "the bank"), Normal(torch.zeros(4), 1.0).to_event(1)
    with pytest.raises(NoDensityError, match="the bank is known only through its draws"):
        d.log_prob(torch.zeros(4))
    with pytest.raises(NoDensityError, match=r"the bank .* no ELBO.*LowRank.from_bank"):
        elbo.loss(lambda: pyro.sample("z", prior), lambda: pyro.sample("z", d))


def test_float32_keeps_its_digits_for_large_batches():
    n = 50_000.0
    single = InverseChi(torch.tensor(n - 1), torch.tensor(math.sqrt(n)))
    double = InverseChi(single.df.double(), single.scale.double())
    value = torch.tensor([0.99, 1.0, 1.005])
    torch.testing.assert_close(
        single.log_prob(value).double(), double.log_prob(value.double()), rtol=1e-5, atol=1e-4
    )
    other = InverseChi(torch.tensor(2 * n - 1), torch.tensor(math.sqrt(2 * n)))
    exact = kl_divergence(double, InverseChi(other.df.double(), other.scale.double()))
    torch.testing.assert_close(kl_divergence(single, other).double(), exact, rtol=1e-4, atol=0)


def test_improper_densities_have_the_shape_of_their_channels():
    for improper, value in ((ImproperFlat, -2.0), (ImproperLogUniform, 2.0)):
        assert improper(torch.zeros(3)).log_prob(torch.tensor(value)).shape == (3,)
        with pytest.raises(ValueError, match="within the support"):
            improper(torch.zeros(3), validate_args=True).log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize(("event_dim", "expected"), [(-1, "at least 0"), (2, "between 0 and 1")])
def test_draws_need_an_event_that_fits(event_dim, expected):
    with pytest.raises(OptionError, match=f"event_dim must be {expected}.* got {event_dim}"):
        DrawsOnly(torch.zeros(3), event_dim, "x")


def test_torchs_own_distributions_find_the_divergences():
    ours = kl_divergence(pyro.distributions.LogNormal(0.1, 0.3), InverseChi(7.0, 2.0))
    theirs = kl_divergence(torch.distributions.LogNormal(0.1, 0.3), InverseChi(7.0, 2.0))
    torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_cdf_and_its_inverse_match_scipy(df, scale):
    d, levels = InverseChi(*f64(df, scale)), f64(0.01, 0.3, 0.5, 0.99)
    square = scipy.stats.invgamma(df / 2, scale=scale**2 / 2)  # of X^2
    np.testing.assert_allclose(d.icdf(levels), np.sqrt(square.ppf(levels)), rtol=1e-9)
    np.testing.assert_allclose(d.cdf(d.icdf(levels)), levels, rtol=1e-9)
    assert InverseChi(torch.tensor(df), scale).icdf(torch.tensor(0.5)).dtype == torch.float32


@pytest.mark.parametrize(("df", "scale"), DF_SCALE)
def test_entropy_matches_integration(df, scale):
    d = InverseChi(*f64(df, scale))
    t = torch.linspace(-6, 60, 200_001, dtype=torch.float64)  # x = exp(t)
    log_p = d.log_prob(t.exp())
    integrand = torch.where(log_p + t > -700, (log_p + t).exp() * log_p, 0.0)
    assert d.entropy().item() == pytest.approx(-torch.trapezoid(integrand, t).item(), rel=1e-6)
