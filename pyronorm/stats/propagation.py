r"""Moments of activations per channel, propagated through the operations of a network.

Each function takes and returns mean and variance per channel, as if the values were Gaussian and
independent of each other: of channels, of positions and of summands. Everything is differentiable,
with finite gradients at variance 0 (a channel whose weight starts at 0, say).

Source: Shekhovtsov & Flach, "Feed-forward Propagation in Probabilistic Neural Networks with
Categorical and Max Layers" (ICLR 2019), sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

__all__ = [
    "Gaussian",
    "adaptive_window",
    "average_moments",
    "clipped_moments",
    "convolution_moments",
    "dropout_moments",
    "elementwise_moments",
    "interpolation_moments",
    "leaky_relu_moments",
    "linear_moments",
    "maximum_moments",
    "product_moments",
    "transposed_convolution_moments",
]

Gaussian = tuple[Tensor, Tensor]
"""Mean and variance per channel, each of shape ``(channel,)``."""

_TINY = 1e-20  # added to variances, so that roots and ratios have gradients at 0
_NODES = 64


def linear_moments(
    x: Gaussian, weight: Float[Tensor, "out channel"], bias: Tensor | None = None
) -> Gaussian:
    r"""Moments of ``weight @ x + bias``.

    :math:`\mu'_o = \sum_i w_{oi} \mu_i + b_o`, :math:`\sigma'^2_o = \sum_i w_{oi}^2 \sigma^2_i`.

    Args:
        x: moments of the input.
        weight: shape ``(out, channel)``.
        bias: shape ``(out,)``.
    """
    mean, var = x
    out = weight @ mean if bias is None else torch.addmv(bias, weight, mean)
    return out, weight.square() @ var


def convolution_moments(
    x: Gaussian,
    weight: Float[Tensor, "out group_channel *kernel"],
    bias: Tensor | None = None,
    groups: int = 1,
) -> Gaussian:
    r"""Moments of a convolution, whatever its stride and dilation.

    As :func:`linear_moments`, summed over kernel positions too. Padding is not accounted for: the
    moments are those of a position away from the border.

    Args:
        x: moments of the input.
        weight: as in torch.nn.Conv1d/2d/3d, shape ``(out, channel / groups, *kernel)``.
        bias: shape ``(out,)``.
        groups: groups of channels.
    """
    taps = weight.flatten(2)
    if groups == 1:
        # linear_moments of the sums over the kernel, of the weights and of their squares
        mean, _ = linear_moments(x, taps.sum(2), bias)
        return mean, taps.square().sum(2) @ x[1]
    mean, var = (part.view(groups, -1, 1) for part in x)
    first = taps.sum(2).view(groups, -1, taps.shape[1])
    second = taps.square().sum(2).view(groups, -1, taps.shape[1])
    out = (first @ mean).flatten()
    return (out if bias is None else out + bias), (second @ var).flatten()


def transposed_convolution_moments(
    x: Gaussian,
    weight: Float[Tensor, "channel group_out *kernel"],
    bias: Tensor | None = None,
    groups: int = 1,
    stride: Sequence[int] = (1,),
) -> Gaussian:
    r"""Moments of a transposed convolution, over all its output positions.

    With a stride the output positions see different parts of the kernel (phases): mean and variance
    are those of a random phase, :math:`\mu = \mathbb E_p \mu_p`,
    :math:`\sigma^2 = \mathbb E_p \sigma_p^2 + \mathrm{Var}_p\, \mu_p`. Exact for dilation 1.

    Args:
        x: moments of the input.
        weight: as in torch.nn.ConvTranspose1d/2d/3d, shape ``(channel, out / groups, *kernel)``.
        bias: shape ``(out,)``.
        groups: groups of channels.
        stride: one per axis of the kernel.
    """
    channels, out = weight.shape[:2]
    grouped = weight.view(groups, channels // groups, out, *weight.shape[2:])
    flipped = grouped.transpose(1, 2).flatten(0, 1)  # (out, channel / groups, *kernel)
    means, variances = [], []
    for phase in product(*(range(step) for step in stride)):
        places = tuple(slice(start, None, step) for start, step in zip(phase, stride, strict=True))
        mean, var = convolution_moments(
            x, flipped[(slice(None), slice(None), *places)], None, groups
        )
        means.append(mean)
        variances.append(var)
    phases = torch.stack(means)
    mean = phases.mean(0)
    var = torch.stack(variances).mean(0) + phases.var(0, correction=0)
    return (mean if bias is None else mean + bias), var


def leaky_relu_moments(x: Gaussian, slope: float | Tensor = 0.0) -> Gaussian:
    r"""Moments of :math:`\max(x, 0) + \alpha \min(x, 0)`, exact for Gaussian ``x``.

    With :math:`a = \mu/\sigma`, the standard normal density :math:`\phi(a)` and cumulative
    :math:`\Phi(a)`:

    .. math::
        \mu' &= \alpha\mu + (1-\alpha)\sigma E_+, \\
        \sigma'^2 &= \sigma^2\,[\alpha^2 + 2\alpha(1-\alpha)\Phi + (1-\alpha)^2 R], \\
        R &= a\phi + (a^2+1)\Phi - (a\Phi + \phi)^2 = \Phi - E_+ E_-, \qquad
        E_\pm = \phi \pm a\Phi(\pm a)

    Args:
        x: moments of the input.
        slope: :math:`\alpha`; 0 is ReLU, -1 the absolute value, a tensor a slope per channel.

    Departs from the paper: its shortcut for the variance (eq. 25) is up to 48 % off and is not used.
    """
    mean, var = x
    std = (var + _TINY).sqrt()
    a = mean / std
    below, above, density = _cumulative(-a), _cumulative(a), _density(a)
    up = torch.addcmul(density, a, above)
    down = torch.addcmul(density, a, below, value=-1)
    ratio = torch.addcmul(above, up, down, value=-1).clamp(min=0)
    if isinstance(slope, (int, float)) and slope == 0:
        return std * up, var * ratio
    rest = 1 - slope
    scaled = slope * slope + rest * (2 * slope * above + rest * ratio)
    return slope * mean + rest * (std * up), var * scaled


def clipped_moments(x: Gaussian, low: float, high: float) -> Gaussian:
    r"""Moments of ``x`` clipped to ``[low, high]`` (ReLU6, hard tanh), exact for Gaussian ``x``.

    With :math:`\alpha = (l-\mu)/\sigma`, :math:`\beta = (h-\mu)/\sigma` and centred bounds
    :math:`l, h`, the first two moments of the clipped value are

    .. math::
        l\Phi(\alpha) + h\Phi(-\beta) + \mu(\Phi(\beta) - \Phi(\alpha)) + \sigma(\phi(\alpha) -
        \phi(\beta)), \qquad
        l^2\Phi(\alpha) + h^2\Phi(-\beta) + \int_l^h x^2 p(x)\,dx .

    Args:
        x: moments of the input.
        low: lower bound.
        high: upper bound, above ``low``.
    """
    mean, var = x
    centre = mean.detach().clamp(low, high)  # about which the moments are taken: less cancellation
    std = (var + _TINY).sqrt()
    mean, low_, high_ = mean - centre, low - centre, high - centre
    alpha, beta = (low_ - mean) / std, (high_ - mean) / std
    under, over = _cumulative(alpha), _cumulative(-beta)
    inside = (1 - under - over).clamp(min=0)
    left, right = _density(alpha), _density(beta)
    first = low_ * under + high_ * over + mean * inside + std * (left - right)
    second = low_.square() * under + high_.square() * over + (mean.square() + var) * inside
    second = second + std * ((mean + low_) * left - (mean + high_) * right)
    return first + centre, (second - first.square()).clamp(min=0)


def elementwise_moments(x: Gaussian, function: Callable[[Tensor], Tensor]) -> Gaussian:
    r"""Moments of any function of each value, by Gauss-Hermite quadrature with 64 nodes.

    :math:`\mu' = \sum_k w_k f(\mu + \sigma z_k)`, :math:`\sigma'^2 = \sum_k w_k (f(\mu + \sigma z_k) -
    \mu')^2`. Smooth activations come out to 4 digits up to :math:`\sigma = 2`, saturating ones to 3 %
    at :math:`\sigma = 5` and to 15 % at 20, functions with kinks (hard swish) to 2 %.

    Args:
        x: moments of the input.
        function: applied to a tensor, element by element.
    """
    mean, var = x
    std = (var + _TINY).sqrt()
    nodes, weights = (mean.new_tensor(values) for values in _gauss_hermite())
    values = function(mean[:, None] + std[:, None] * nodes)
    out = values @ weights
    return out, (values - out[:, None]).square() @ weights


def maximum_moments(x: Gaussian, count: int) -> Gaussian:
    r"""Moments of the maximum of ``count`` independent Gaussian values of one channel.

    :math:`\mu' = \mu + \sigma e_k`, :math:`\sigma'^2 = \sigma^2 v_k` with mean and variance of the
    largest of ``k`` standard normal values. Neighbouring positions are correlated and, behind a
    ReLU, not Gaussian: for max pooling this is a rough figure.

    Args:
        x: moments of the input.
        count: number of values.
    """
    mean, var = x
    shift, factor = _largest_of(count)
    return mean + shift * (var + _TINY).sqrt(), factor * var


def average_moments(x: Gaussian, count: float) -> Gaussian:
    """Moments of the mean of ``count`` independent values: the variance divided by ``count``."""
    return x[0], x[1] / count


def adaptive_window(old: Sequence[int], new: Sequence[int]) -> float:
    """How many positions an adaptive pooling takes together; harmonic mean over its outputs.

    Args:
        old: positions of the input, per axis.
        new: positions of the output.
    """
    window = 1.0
    for length, outputs in zip(old, new, strict=True):
        starts = (i * length // outputs for i in range(outputs))
        ends = (-(-(i + 1) * length // outputs) for i in range(outputs))
        sizes = [end - start for start, end in zip(starts, ends, strict=True)]
        window *= outputs / sum(1 / size for size in sizes)
    return window


def interpolation_moments(
    x: Gaussian,
    old: Sequence[int],
    new: Sequence[int],
    mode: str,
    align_corners: bool = False,
    antialias: bool = False,
) -> Gaussian:
    r"""Moments of an interpolation between independent positions.

    The weights of each output position sum to 1, so the mean stays; the variance is multiplied with
    :math:`\sum_i w_i^2`, averaged over the output positions.

    Args:
        x: moments of the input.
        old: positions of the input, per axis.
        new: positions of the output.
        mode: as in torch.nn.functional.interpolate, and the following.
        align_corners: see there.
        antialias: see there.
    """
    mode = {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)
    sizes = zip(old, new, strict=True)
    return x[0], x[1] * math.prod(
        _interpolation_factor(*size, mode, align_corners, antialias) for size in sizes
    )


def dropout_moments(x: Gaussian, probability: float) -> Gaussian:
    r"""Moments of ``x * mask / (1 - p)``: mean :math:`\mu`, variance :math:`(\sigma^2+p\mu^2)/(1-p)`."""
    mean, var = x
    if probability >= 1:
        return torch.zeros_like(mean), torch.zeros_like(var)
    return mean, (var + probability * mean.square()) / (1 - probability)


def product_moments(x: Gaussian, y: Gaussian) -> Gaussian:
    r"""Moments of a product of independent values.

    :math:`\mu_x\mu_y` and :math:`\sigma_x^2\sigma_y^2 + \sigma_x^2\mu_y^2 + \sigma_y^2\mu_x^2`.
    """
    (a, v), (b, w) = x, y
    return a * b, v * w + v * b.square() + w * a.square()


def _density(a: Tensor) -> Tensor:
    return torch.exp(-0.5 * a.square()) * (1 / math.sqrt(2 * math.pi))


def _cumulative(a: Tensor) -> Tensor:
    return 0.5 * torch.erfc(a * -math.sqrt(0.5))


@cache
def _gauss_hermite() -> tuple[list[float], list[float]]:
    nodes, weights = hermegauss(_NODES)
    return nodes.tolist(), (weights / weights.sum()).tolist()


@cache
def _interpolation_factor(old: int, new: int, mode: str, align: bool, antialias: bool) -> float:
    """Sum of squared weights along one axis, mean over the output positions."""
    if mode.startswith("nearest"):
        return 1.0
    basis = torch.eye(old, dtype=torch.float64)[None, :, None]  # each input position a channel
    corners = None if mode == "area" else align
    weights = F.interpolate(
        basis, size=(1, new), mode=mode, align_corners=corners, antialias=antialias
    )
    return float(weights.square().sum(1).mean())


@cache
def _largest_of(count: int) -> tuple[float, float]:
    """Mean and variance of the largest of so many standard normal values."""
    z = np.linspace(-12, 12, 20001)
    cumulative = 0.5 * (1 + torch.erf(torch.from_numpy(z) / math.sqrt(2))).numpy()
    below = cumulative**count
    mass = np.diff(below)
    middle = 0.5 * (z[1:] + z[:-1])
    mean = float(mass @ middle)
    return mean, float(mass @ (middle - mean) ** 2)
