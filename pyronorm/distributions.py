r"""Distributions of normalization statistics, as Pyro distributions.

* :class:`InverseChi`: the scale of batch noise.
* :class:`ImproperFlat`, :class:`ImproperLogUniform`: scale-invariant priors, without a normalizer.
* :class:`DrawsOnly`: a posterior known only through its draws; it has no density and says so.

Registered with :func:`torch.distributions.kl_divergence`, so that
:class:`pyro.infer.TraceMeanField_ELBO` finds them: InverseChi ‖ InverseChi, LogNormal ‖ InverseChi,
InverseChi ‖ LogNormal, Normal ‖ ImproperFlat, LogNormal ‖ ImproperLogUniform, InverseChi ‖
ImproperLogUniform, LogNormal ‖ Gamma.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Gamma,
    LogNormal,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.distributions.utils import broadcast_all

from pyronorm.checks import Natural, checked
from pyronorm.errors import NoDensityError, OptionError

__all__ = ["DrawsOnly", "ImproperFlat", "ImproperLogUniform", "InverseChi"]

# Typing note: torch.distributions annotates `support` and `arg_constraints` differently in every
# class; Any keeps the overrides compatible.


class InverseChi(TorchDistribution):
    r"""The distribution of :math:`X = \tau / \sqrt{Y}` with :math:`Y \sim \chi^2_\nu`.

    .. math::
        \log p(x) = \left(1 - \tfrac{\nu}{2}\right)\log 2 - \log\Gamma\!\left(\tfrac{\nu}{2}\right)
        + \nu \log \tau - (\nu + 1)\log x - \frac{\tau^2}{2x^2}

    The scale :math:`\sigma/S` of a Gaussian batch of ``n`` values is
    ``InverseChi(df=n - 1, scale=sqrt(n))``. The mean exists for :math:`\nu > 1`, the variance for
    :math:`\nu > 2`; where they do not, they are ``inf``.

    Args:
        df: degrees of freedom :math:`\nu > 0`, any shape.
        scale: :math:`\tau > 0`, any shape that broadcasts with ``df``.
        validate_args: check arguments and values (torch's default).
    """

    arg_constraints: ClassVar[Any] = {"df": constraints.positive, "scale": constraints.positive}
    support: ClassVar[Any] = constraints.positive
    has_rsample = True

    @checked
    def __init__(
        self, df: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.df, self.scale = broadcast_all(df, scale)
        super().__init__(self.df.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> InverseChi:
        """Return the distribution with its parameters expanded to ``batch_shape``."""
        new: InverseChi = self._get_checked_instance(InverseChi, _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size(batch_shape)
        new.df = self.df.expand(shape)
        new.scale = self.scale.expand(shape)
        super(InverseChi, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw reparameterized samples: pathwise gradients reach ``scale`` and ``df``."""
        shape = torch.Size(sample_shape) + self.df.shape
        # Chi2 would copy its rate from the host, which waits for the device.
        chi2 = 2 * torch._standard_gamma((self.df / 2).expand(shape))
        chi2 = chi2.clamp(min=torch.finfo(chi2.dtype).tiny)
        return self.scale * torch.rsqrt(chi2)

    @checked
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value`` (formula above)."""
        if self._validate_args:
            self._validate_sample(value)
        df, scale, x = _precise(self.df, self.scale, value)
        half = df / 2
        log_prob = (
            (1 - half) * math.log(2)
            - torch.lgamma(half)
            + df * torch.log(scale)
            - (df + 1) * torch.log(x)
            - (scale / x).square() / 2
        )
        return log_prob.to(_common_dtype(value, self.df))

    @property
    def mean(self) -> Tensor:
        r""":math:`\tau\, \Gamma(\frac{\nu-1}{2}) / (\sqrt 2\, \Gamma(\frac{\nu}{2}))`."""
        return self._moments()[0].to(self.df.dtype)

    @property
    def variance(self) -> Tensor:
        r""":math:`\tau^2/(\nu-2) - \text{mean}^2`."""
        return self._moments()[1].to(self.df.dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        df, scale = _precise(self.df, self.scale)
        ratio = torch.exp(torch.lgamma((df - 1) / 2) - torch.lgamma(df / 2))
        mean = torch.where(df > 1, scale * ratio / math.sqrt(2), torch.inf)
        second = scale.square() / (df - 2)
        return mean, torch.where(df > 2, second - mean.square(), torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        r"""Probability of values below: :math:`Q(\nu/2, \tau^2/(2x^2))`, the upper incomplete gamma."""
        if self._validate_args:
            self._validate_sample(value)
        df, scale, x = _precise(self.df, self.scale, value)
        cdf: Tensor = torch.special.gammaincc(df / 2, (scale / x).square() / 2)
        return cdf.to(_common_dtype(value, self.df))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles at levels between 0 and 1, by SciPy: on the CPU and without gradients."""
        from scipy.special import gammainccinv

        df, scale, level = (v.detach().double().cpu() for v in (self.df, self.scale, value))
        half_square = torch.as_tensor(gammainccinv(df.numpy() / 2, level.numpy()))
        quantile: Tensor = scale * torch.rsqrt(2 * half_square)
        return quantile.to(self.df)

    def entropy(self) -> Tensor:
        r"""Entropy: :math:`-\mathbb E \log p(X)`."""
        return _inverse_chi_entropy(self).to(self.df.dtype)

    def precision(self) -> Gamma:
        r"""The distribution of :math:`1/X^2`: Gamma with shape ν/2 and rate τ²/2, in float64."""
        df, scale = _precise(self.df, self.scale)
        return Gamma(df / 2, scale.square() / 2, validate_args=False)


def _common_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    # torch.compile cannot follow result_type
    return a.dtype if a.dtype == b.dtype else torch.result_type(a, b)


def _precise(*values: Tensor) -> tuple[Tensor, ...]:
    # Differences of lgamma cancel; float64 keeps them right for batch sizes of many thousands. (An
    # Apple GPU has no float64.)
    return tuple(v if v.device.type == "mps" else v.double() for v in values)


class _Improper(TorchDistribution):
    """A density without a normalizer: it has a log density, and no draws."""

    arg_constraints: ClassVar[Any] = {}
    has_rsample = True

    @checked
    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Improper:
        new: _Improper = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        new.like = self.like.expand(batch_shape)
        super(_Improper, new).__init__(new.like.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise OptionError(
            f"{type(self).__name__} is improper: it cannot be sampled. For an autoguide pass "
            "init_loc_fn=pyronorm.init_to_neutral, for NUTS take pyronorm.run_nuts; "
            "for draws from a prior choose a proper one (Standard, BatchNoise)."
        )

    rsample = sample


class ImproperFlat(_Improper):
    r"""The flat density :math:`p(x) \propto 1` on the real line.

    Args:
        like: a tensor that gives shape, device and dtype; its values do not matter.
        validate_args: check values (torch's default).
    """

    support: ClassVar[Any] = constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.zeros_like(value).expand(torch.broadcast_shapes(value.shape, self.batch_shape))


class ImproperLogUniform(_Improper):
    r"""The scale-invariant density :math:`p(x) \propto 1/x` on the positive numbers.

    Args:
        like: a tensor that gives shape, device and dtype; its values do not matter.
        validate_args: check values (torch's default).
    """

    support: ClassVar[Any] = constraints.positive

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`-\log x`."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = -torch.log(value)
        return log_prob.expand(torch.broadcast_shapes(value.shape, self.batch_shape))


class DrawsOnly(TorchDistribution):
    """A value drawn from a distribution that has draws and no density.

    Pyro needs a distribution at every sample site. This one yields ``value`` and refuses to be
    asked for its density, so that an ELBO over it fails instead of being wrong.

    Args:
        value: the draw, shape ``(*batch, *event)``.
        event_dim: number of event dimensions at the right.
        source: what drew it, for the error message.
    """

    arg_constraints: ClassVar[Any] = {}
    support: ClassVar[Any] = constraints.real
    has_rsample = True

    @checked
    def __init__(self, value: Tensor, event_dim: Natural, source: str) -> None:
        if event_dim > value.ndim:
            raise OptionError(
                f"DrawsOnly: event_dim must be between 0 and {value.ndim} for a value of shape "
                f"{tuple(value.shape)}, got {event_dim}."
            )
        split = value.ndim - event_dim
        self.value = value
        self.source = source
        super().__init__(value.shape[:split], value.shape[split:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DrawsOnly:
        """Return the distribution of the expanded value."""
        shape = torch.Size(batch_shape) + self.event_shape
        return DrawsOnly(self.value.expand(shape), self.event_dim, self.source)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the value, expanded to ``sample_shape``."""
        return self.value.expand(torch.Size(sample_shape) + self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Refuse.

        Raises:
            NoDensityError: always.
        """
        raise NoDensityError(
            f"{self.source} is known only through its draws: it has no density, hence no KL "
            "divergence and no ELBO. Use it to predict and to export; to train, take a guide with a "
            "density, e.g. LowRank.from_bank or StochasticBatchNorm for the same bank."
        )


@register_kl(InverseChi, InverseChi)  # type: ignore[untyped-decorator]
def _kl_inverse_chi_inverse_chi(p: InverseChi, q: InverseChi) -> Tensor:
    # KL is invariant under the bijection x -> 1/x^2, where both are Gamma.
    return kl_divergence(p.precision(), q.precision()).to(_common_dtype(p.df, q.df))


@register_kl(LogNormal, InverseChi)  # type: ignore[untyped-decorator]
def _kl_log_normal_inverse_chi(p: LogNormal, q: InverseChi) -> Tensor:
    # -H(p) - E_p log q, with E log x = loc and E x^-2 = exp(2 std^2 - 2 loc).
    loc, std, df, scale = _precise(p.loc, p.scale, q.df, q.scale)
    half = df / 2
    cross = (
        (1 - half) * math.log(2)
        - torch.lgamma(half)
        + df * torch.log(scale)
        - (df + 1) * loc
        - scale.square() / 2 * torch.exp(2 * std.square() - 2 * loc)
    )
    return (-_log_normal_entropy(loc, std) - cross).to(_common_dtype(p.loc, q.df))


@register_kl(LogNormal, Gamma)  # type: ignore[untyped-decorator]
def _kl_log_normal_gamma(p: LogNormal, q: Gamma) -> Tensor:
    # -H(p) - E_p log q, with E log x = loc and E x = exp(loc + std^2 / 2).
    loc, std, a, b = _precise(p.loc, p.scale, q.concentration, q.rate)
    cross = a * torch.log(b) - torch.lgamma(a) + (a - 1) * loc - b * torch.exp(loc + std**2 / 2)
    return (-_log_normal_entropy(loc, std) - cross).to(_common_dtype(p.loc, q.rate))


@register_kl(InverseChi, LogNormal)  # type: ignore[untyped-decorator]
def _kl_inverse_chi_log_normal(p: InverseChi, q: LogNormal) -> Tensor:
    mean, variance = _log_moments(p)
    loc, std = _precise(q.loc, q.scale)
    cross = -mean - torch.log(std) - 0.5 * math.log(2 * math.pi)
    cross = cross - (variance + (mean - loc).square()) / (2 * std.square())
    return (-_inverse_chi_entropy(p) - cross).to(_common_dtype(p.df, q.loc))


@register_kl(InverseChi, ImproperLogUniform)  # type: ignore[untyped-decorator]
def _kl_inverse_chi_log_uniform(p: InverseChi, q: ImproperLogUniform) -> Tensor:
    kl = (-_inverse_chi_entropy(p) + _log_moments(p)[0]).to(p.df.dtype)
    return kl.expand(torch.broadcast_shapes(kl.shape, q.batch_shape))


@register_kl(Normal, ImproperFlat)  # type: ignore[untyped-decorator]
def _kl_normal_flat(p: Normal, q: ImproperFlat) -> Tensor:
    entropy: Tensor = p.entropy()
    return -entropy.expand(torch.broadcast_shapes(entropy.shape, q.batch_shape))


@register_kl(LogNormal, ImproperLogUniform)  # type: ignore[untyped-decorator]
def _kl_log_normal_log_uniform(p: LogNormal, q: ImproperLogUniform) -> Tensor:
    kl = -_log_normal_entropy(p.loc, p.scale) + p.loc
    return kl.expand(torch.broadcast_shapes(kl.shape, q.batch_shape))


def _log_normal_entropy(loc: Tensor, std: Tensor) -> Tensor:
    return loc + torch.log(std) + 0.5 * (1 + math.log(2 * math.pi))


def _log_moments(p: InverseChi) -> tuple[Tensor, Tensor]:
    """Mean and variance of log X, in float64."""
    df, scale = _precise(p.df, p.scale)
    mean = torch.log(scale) - (torch.digamma(df / 2) + math.log(2)) / 2
    return mean, torch.polygamma(1, df / 2) / 4


def _inverse_chi_entropy(p: InverseChi) -> Tensor:
    # -E log p(X) with E tau^2 / X^2 = df, in float64.
    df, scale = _precise(p.df, p.scale)
    half = df / 2
    return (
        (half - 1) * math.log(2)
        + torch.lgamma(half)
        - df * torch.log(scale)
        + (df + 1) * _log_moments(p)[0]
        + half
    )
