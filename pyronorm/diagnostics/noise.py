r"""How much batch noise there is, and whether it follows its law.

All of it is about the statistics themselves, :math:`(\mu - M)/\sigma` and :math:`S^2/\sigma^2`, without
the ``eps`` that layers add: what ``eps`` takes away is the layer's doing, not the batch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyronorm.checks import Count, Positive, Probability, checked
from pyronorm.diagnostics.layer_inputs import InputShape
from pyronorm.display import displayed
from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides import StatisticsBank
from pyronorm.latents import LatentSpace
from pyronorm.randomness import Seed, seed_value
from pyronorm.stats import log_var_variance

__all__ = [
    "BatchSizes",
    "Interval",
    "LawTest",
    "moment_batch_sizes",
    "noise_law_test",
    "noise_statistics",
]

_RESAMPLES = 1000
_MIN_ROWS = 20  # below, no interval or test here is worth its name
_Array = NDArray[np.float64]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Interval:
    """Estimates with a confidence interval each.

    Attributes:
        value: the estimates.
        low: lower ends.
        high: upper ends.
    """

    value: Float[Tensor, " item"]
    low: Float[Tensor, " item"]
    high: Float[Tensor, " item"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class BatchSizes:
    r"""Effective batch sizes, by channel and by layer.

    Attributes:
        space: names the layers and channels.
        batch_size: examples per batch of the bank, for comparison.
        channel_shift: per channel, :math:`1/\mathrm{Var}(\text{shift})`.
        channel_scale: per channel, the ``n`` whose law has the variance of :math:`\log S^2`.
        layer_shift: per layer, one over the mean over channels of :math:`\mathrm{Var}(\text{shift})`.
        layer_scale: per layer, from the mean over channels of the variances of :math:`\log S^2`.

    Layers without batch statistics and channels that are constant have NaN; the latter do not count
    in their layer.
    """

    space: LatentSpace
    batch_size: Count
    channel_shift: Interval
    channel_scale: Interval
    layer_shift: Interval
    layer_scale: Interval


@checked
def moment_batch_sizes(
    bank: StatisticsBank, *, level: Probability = 0.95, seed: Seed = 0
) -> BatchSizes:
    r"""Measure by means and by variances apart how many independent values a batch is worth.

    Where the two agree the Gaussian law of batch noise holds, and one number says it all. For that one
    number, estimated by maximum likelihood from means and variances together with the layers' ``eps``
    (what guides start from), take :meth:`pyronorm.StatisticsBank.effective_batch_size`.

    From the means, :math:`n = 1/\mathrm{Var}((\mu - M)/\sigma)`, exact for independent values of any
    distribution; from the variances the ``n`` that solves
    :math:`\psi_1(\frac{n-1}{2}) = \mathrm{Var}(\log S^2)`, which heavy tails lower. Positions of an
    image are correlated, so ``n`` is not batch size times positions: below it for smooth images, above
    it where a filter's mean hardly varies between images, or where a normalized layer before has taken
    variation away. Batches drawn without replacement from ``N`` values raise it by
    :math:`(N-1)/(N-n)`.

    Intervals: for a channel from
    :math:`\nu v / \mathrm{Var} \sim \chi^2_\nu` with the variance :math:`v` of ``T`` rows and
    :math:`2/\nu = 2/(T-1) + \kappa/T`, where :math:`\kappa` is the excess kurtosis of the law: 0 for a
    shift, :math:`\psi_3/\psi_1^2` at :math:`\frac{n-1}{2}` for :math:`\log S^2`. For a layer a bootstrap
    over rows (1,000 resamples, percentiles), since channels of a row are correlated.

    Args:
        bank: at least 20 rows, taken as independent.
        level: confidence level of the intervals.
        seed: seeds the bootstrap, apart from torch's own generator.

    Raises:
        OptionError: if the bank has fewer than 20 rows.
    """
    bank.check(bank.space, "moment_batch_sizes", _MIN_ROWS)
    shift, log_var = noise_statistics(bank)
    rows, tail = len(shift), (1 - level) / 2
    v_shift, v_scale = shift.var(0), log_var.var(0)
    n_scale = _from_log_var(v_scale)
    channel_shift = _channel_interval(v_shift, torch.zeros_like(v_shift), rows, tail, _from_shift)
    channel_scale = _channel_interval(v_scale, _log_var_excess(n_scale), rows, tail, _from_log_var)
    generator = torch.Generator().manual_seed(seed_value(seed))
    draws = torch.randint(rows, (_RESAMPLES, rows), generator=generator)
    counts = torch.zeros(_RESAMPLES, rows, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    return BatchSizes(
        bank.space,
        bank.batch_size,
        channel_shift,
        channel_scale,
        _layer_interval(bank.space, shift, counts, tail, _from_shift),
        _layer_interval(bank.space, log_var, counts, tail, _from_log_var),
    )


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class LawTest:
    r"""Whether the rows of a bank follow a law of batch noise.

    Attributes:
        space: names the layers and channels.
        level: the false-alarm rate per layer, at most.
        n: the effective batch size the law was tested at, per channel.
        p_shift: p-value of the shift, per channel.
        p_scale: p-value of :math:`S^2`, per channel.
        p_correlation: p-value of the correlation of the two, per channel.

    NaN for channels that are constant or have no batch statistics.
    """

    space: LatentSpace
    level: Probability
    n: Float[Tensor, " channel"]
    p_shift: Float[Tensor, " channel"]
    p_scale: Float[Tensor, " channel"]
    p_correlation: Float[Tensor, " channel"]

    @property
    def p(self) -> dict[str, float]:
        """For each layer the smallest p-value times their number (Bonferroni), at most 1.

        Valid however channels and tests depend on each other. Layers without p-values have none.
        """
        every = torch.stack([self.p_shift, self.p_scale, self.p_correlation])
        found = {}
        for name, part in self.space.unpack(every).items():
            part = part[~part.isnan()]
            if len(part):
                found[name] = min(1.0, float(part.min()) * len(part))
        return found

    @property
    def rejected(self) -> dict[str, bool]:
        """For each layer whether the law is rejected at :attr:`level`."""
        return {name: p < self.level for name, p in self.p.items()}


@checked
def noise_law_test(
    bank: StatisticsBank,
    n: Positive | None = None,
    *,
    shape: InputShape | None = None,
    level: Probability = 0.01,
) -> LawTest:
    r"""Test a bank against the law of batch noise.

    Without ``shape``, against the law of Gaussian values (:mod:`pyronorm.stats`),

    * the shift: Kolmogorov-Smirnov against :math:`\mathcal N(0, 1/n)`, and the variance by
      :math:`\chi^2_{T-1}`;
    * :math:`S^2`: Kolmogorov-Smirnov of :math:`nS^2/\sigma^2` against :math:`\chi^2_{n-1}`, and the
      variance of :math:`\log S^2` against :math:`\psi_1(\frac{n-1}{2})`, as in
      :func:`moment_batch_sizes`;
    * their correlation, of shift and :math:`\log S^2`, against 0 by Fisher's transformation.

    With ``shape``, the skewness :math:`\gamma` and excess kurtosis :math:`\kappa` of the values, against
    the moments that independent values of such a distribution have,

    .. math::
        \mathrm{Var}\frac{S^2}{\sigma^2} = \frac{(n-1)^2}{n^3}\kappa + \frac{2(n-1)}{n^2}
        \approx \frac{\kappa + 2}{n}, \qquad
        \mathrm{Cov}\Big(\frac{M}{\sigma}, \frac{S^2}{\sigma^2}\Big) = \frac{n-1}{n^2}\gamma,

    and :math:`\mathrm{Var}(M/\sigma) = 1/n`, each studentized with the fourth moments of the rows.
    This is asymptotic in the number of rows: take several hundred.

    Where ``n`` is fitted, it is :math:`1/\mathrm{Var}(\text{shift})` of each channel. Nothing is then
    left of the variance of the shift to test; that of :math:`\log S^2` is tested for agreement with it,
    the uncertainty of both counted; and Kolmogorov-Smirnov, with parameters fitted to the same values,
    is conservative.

    Args:
        bank: at least 20 rows, taken as independent.
        n: the effective batch size, the same for all channels; None fits it.
        shape: skewness and kurtosis of the values, from :func:`input_shape`; None for Gaussian ones.
        level: false-alarm rate per layer.

    Returns:
        P-values per channel; :attr:`LawTest.rejected` combines them per layer.

    Raises:
        OptionError: if the bank has fewer than 20 rows, or ``n`` or ``level`` is out of range.
        ShapeError: if ``shape`` belongs to another network.

    Source: Cochran's theorem; for the moments Mood, Graybill & Boes, "Introduction to the Theory of
    Statistics" (1974), chapter VI. The tests and their combination are ours.
    """
    bank.check(bank.space, "noise_law_test", _MIN_ROWS)
    if n is not None and not 1 < n < float("inf"):
        raise OptionError(f"noise_law_test: n must be a finite number above 1, got {n}.")
    shift, log_var = noise_statistics(bank)
    size = 1 / shift.var(0) if n is None else torch.full_like(shift[0], n)
    size = torch.where(shift[0].isnan(), torch.nan, size)
    if shape is None:
        p = _gaussian_law(shift, log_var, size, fitted=n is None)
    else:
        if shape.skewness.shape != size.shape:
            raise ShapeError(
                f"noise_law_test: the bank has {len(size)} channels, shape has "
                f"{tuple(shape.skewness.shape)}: it belongs to another network."
            )
        p = _corrected_law(shift, log_var.exp(), size, shape, fitted=n is None)
    return LawTest(bank.space, level, size, *(torch.from_numpy(x) for x in p))


def noise_statistics(bank: StatisticsBank) -> tuple[Tensor, Tensor]:
    """Shift and log variance in float64 without eps; NaN for constant channels and other layers."""
    mean, var = bank.mean.detach().cpu().double(), bank.var.detach().cpu().double()
    reference_var = bank.reference_var.detach().cpu().double()
    shift = (bank.reference_mean.detach().cpu().double() - mean) / reference_var.sqrt()
    constant = (var <= 0).any(0) | ~(reference_var > 0) | (shift.var(0) == 0)
    shift = torch.where(constant, torch.nan, shift)
    return shift, torch.where(constant, torch.nan, (var / reference_var).log())


def _from_shift(variance: Tensor) -> Tensor:
    return 1 / variance


def _from_log_var(variance: Tensor) -> Tensor:
    r"""Solve :math:`\psi_1((n-1)/2) = v` by Newton's method on :math:`1/\psi_1`, nearly linear."""
    a = 0.5 + 1 / variance
    for _ in range(20):  # quadratic
        trigamma = torch.polygamma(1, a)
        a = a + trigamma * (1 - trigamma / variance) / torch.polygamma(2, a)
    return 1 + 2 * a


def _log_var_excess(n: Tensor) -> Tensor:
    """Excess kurtosis of log chi-square with n - 1 degrees of freedom."""
    half = (n - 1) / 2
    return torch.polygamma(3, half) / torch.polygamma(1, half).square()


def _chi2_quantile(tail: float, freedom: Tensor) -> Tensor:
    from scipy.stats import chi2

    return torch.from_numpy(np.asarray(chi2.ppf(tail, freedom.numpy())))


def _freedom(excess: Tensor, rows: Count) -> Tensor:
    """Degrees of freedom of the chi-square that the variance of the rows scatters like."""
    return 2 / (2 / (rows - 1) + excess / rows)


def _channel_interval(
    variance: Tensor, excess: Tensor, rows: Count, tail: float, size: Callable[[Tensor], Tensor]
) -> Interval:
    nu = _freedom(excess, rows)
    low, high = (nu * variance / _chi2_quantile(q, nu) for q in (tail, 1 - tail))
    return Interval(size(variance), size(low), size(high))


def _layer_interval(
    space: LatentSpace,
    values: Tensor,
    counts: Tensor,
    tail: float,
    size: Callable[[Tensor], Tensor],
) -> Interval:
    rows = len(values)
    found = []
    for part in space.unpack(values).values():
        part = part[:, ~part[0].isnan()]
        if part.shape[1] == 0:
            found.append(torch.full((3,), torch.nan, dtype=torch.float64))
            continue
        centred = part - part.mean(0)
        mean, square = counts @ centred / rows, counts @ centred.square() / rows
        # Drawn with replacement, the variance is short by (T - 1)/T twice.
        resampled = (square - mean.square()).mean(1) * (rows / (rows - 1)) ** 2
        ends = torch.quantile(resampled, torch.tensor([1 - tail, tail], dtype=torch.float64))
        found.append(size(torch.cat([part.var(0).mean()[None], ends])))
    return Interval(*torch.stack(found, 1))


def _two_sided(cdf: _Array, survival: _Array) -> _Array:
    p: _Array = np.minimum(1.0, 2 * np.minimum(cdf, survival))
    return p


def _gaussian_law(
    shift: Tensor, log_var: Tensor, n: Tensor, *, fitted: bool
) -> tuple[_Array, _Array, _Array]:
    from scipy.stats import chi2, norm

    rows = len(shift)
    v_shift, v_scale = shift.var(0), log_var.var(0)
    n_scale = _from_log_var(v_scale) if fitted else n
    square = (log_var.exp() * n_scale).numpy()
    shapes = (
        _kolmogorov_smirnov(norm.cdf((shift * n.sqrt()).numpy())),
        _kolmogorov_smirnov(chi2.cdf(square, (n_scale - 1).numpy())),
    )
    variance = (rows - 1) * (v_shift * n).numpy()
    p_variance = _two_sided(chi2.cdf(variance, rows - 1), chi2.sf(variance, rows - 1))
    p_shift = shapes[0] if fitted else np.minimum(1.0, 2 * np.minimum(shapes[0], p_variance))
    nu = _freedom(_log_var_excess(n), rows)
    known = n.isfinite()  # a constant channel has no n
    ratio = v_scale / log_var_variance(n.where(known, 2.0)).where(known, math.nan)
    if fitted:
        # Both variances are estimated; the relative one of the shift enters through n.
        half = (n - 1) / 2
        slope = n / 2 * torch.polygamma(2, half) / torch.polygamma(1, half)
        z = (ratio.log() / (2 / nu + slope.square() * 2 / (rows - 1)).sqrt()).numpy()
        p_ratio = _two_sided(norm.cdf(z), norm.sf(z))
    else:
        quantile = (nu * ratio).numpy()
        p_ratio = _two_sided(chi2.cdf(quantile, nu.numpy()), chi2.sf(quantile, nu.numpy()))
    p_scale = np.minimum(1.0, 2 * np.minimum(shapes[1], p_ratio))
    product = (shift - shift.mean(0)) * (log_var - log_var.mean(0))
    correlation = product.sum(0) / (rows - 1) / (v_shift * v_scale).sqrt()
    z = (torch.atanh(correlation) * (rows - 3) ** 0.5).numpy()
    return p_shift, p_scale, _two_sided(norm.cdf(z), norm.sf(z))


def _kolmogorov_smirnov(uniform: _Array) -> _Array:
    from scipy.stats import kstest

    p = np.full(uniform.shape[1], np.nan)
    for c in np.flatnonzero(~np.isnan(uniform[0])):
        p[c] = kstest(uniform[:, c], "uniform").pvalue
    return p


def _corrected_law(
    shift: Tensor, ratio: Tensor, n: Tensor, shape: InputShape, *, fitted: bool
) -> tuple[_Array, _Array, _Array]:
    from scipy.stats import norm

    rows = len(shift)
    skewness, kurtosis = shape.skewness.cpu().double(), shape.kurtosis.cpu().double()
    a, b = shift - shift.mean(0), ratio - ratio.mean(0)
    v_shift, v_scale = a.square().sum(0) / (rows - 1), b.square().sum(0) / (rows - 1)
    expected = (n - 1).square() / n**3 * kurtosis + 2 * (n - 1) / n.square()
    covariance = -(n - 1) / n.square() * skewness
    # What each row adds to the estimates: logs of variances, whose scatter is less skewed, and the
    # covariance in units of both deviations. Where n is fitted it scatters with the shift.
    add_shift = a.square() / v_shift - 1
    add_scale = b.square() / v_scale - 1
    unit = (v_shift * v_scale).sqrt()
    add_product = (a * b - (a * b).mean(0)) / unit
    if fitted:
        add_scale = add_scale - add_shift  # both expectations go as 1/n
        add_product = add_product - covariance / unit * add_shift

    def p_value(difference: Tensor, add: Tensor) -> _Array:
        z = (difference / (add.var(0) / rows).sqrt()).numpy()
        return _two_sided(norm.cdf(z), norm.sf(z))

    p_shift = p_value((v_shift * n).log(), add_shift)
    return (
        np.where(np.isnan(p_shift), np.nan, 1.0) if fitted else p_shift,
        p_value((v_scale / expected).log(), add_scale),
        p_value(((a * b).sum(0) / (rows - 1) - covariance) / unit, add_product),
    )
