"""Continuous ranked probability scores."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.errors import DataError, ShapeError

__all__ = ["check_regression", "crps_normal_mixture", "crps_samples"]


@checked
def crps_normal_mixture(
    mean: Float[Tensor, "sample *batch"],
    std: Float[Tensor, "..."],
    y: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    r"""Continuous ranked probability score of an equal mixture of normal distributions.

    What a normal likelihood predicts with ``S`` draws of the latents, exactly:

    .. math::
        \frac1S\sum_s A(y - m_s, \sigma_s^2) - \frac1{2S^2}\sum_{s,t} A(m_s - m_t,
        \sigma_s^2 + \sigma_t^2), \qquad
        A(d, v) = 2\sqrt v\,\varphi(d/\sqrt v) + d\,(2\Phi(d/\sqrt v) - 1)

    One draw gives the closed form of a normal distribution.

    Args:
        mean: means, one per draw.
        std: standard deviations, positive, that broadcast to the shape of ``mean``.
        y: targets.

    Returns:
        The score of each target, in its units; lower is better.

    Raises:
        ShapeError: if the shapes do not fit.

    Source: Grimit, Gneiting, Berrocal & Johnson, "The continuous ranked probability score for
    circular variables and its application to mesoscale forecast ensemble verification" (2006).
    """
    std, y = check_regression("crps_normal_mixture", mean, std, y)
    draws = len(mean)
    between = torch.zeros_like(y)
    for m, s in zip(mean, std, strict=True):  # one draw against all: memory linear in the draws
        between = between + _folded(m - mean, s.square() + std.square()).sum(0)
    return _folded(y - mean, std.square()).mean(0) - between / (2 * draws**2)


def _folded(d: Tensor, v: Tensor) -> Tensor:
    """Mean of the absolute value of a normal variable of mean ``d`` and variance ``v``."""
    z = d / v.sqrt()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    folded: Tensor = 2 * v.sqrt() * density + d * (2 * torch.special.ndtr(z) - 1)
    return folded


@checked
def crps_samples(
    samples: Float[Tensor, "sample *batch"], y: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r"""Continuous ranked probability score of the empirical distribution of samples.

    :math:`\frac1S\sum_s |x_s - y| - \frac1{2S^2}\sum_{s,t} |x_s - x_t|`, the second sum from the sorted
    samples. Of a distribution that the samples are from this is too high by
    :math:`\frac1{2S}\mathbb E|X - X'|` on average.

    Args:
        samples: draws of ``y`` itself, its noise included.
        y: targets.

    Returns:
        The score of each target, in its units; lower is better.

    Raises:
        ShapeError: if the shapes do not fit.

    Source: Gneiting & Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation" (2007),
    eq. 21.
    """
    if samples.ndim < 1 or len(samples) < 1 or samples.shape[1:] != y.shape:
        raise ShapeError(
            f"crps_samples: y of shape {tuple(y.shape)} needs samples of shape (sample, "
            f"{', '.join(map(str, y.shape))}), got {tuple(samples.shape)}."
        )
    draws, y = len(samples), y.to(samples.device)
    weight = torch.arange(1 - draws, draws, 2, dtype=samples.dtype, device=samples.device)
    weight = weight.view(-1, *(1,) * y.ndim)
    spread = (weight * samples.sort(0).values).sum(0) / draws**2
    return (samples - y).abs().mean(0) - spread


def check_regression(where: str, mean: Tensor, std: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse shapes that do not fit; deviations in the shape of the means, and targets, with them."""
    try:
        fits = torch.broadcast_shapes(std.shape, mean.shape) == mean.shape
    except RuntimeError:
        fits = False
    if not fits or mean.ndim < 1 or mean.shape[1:] != y.shape or len(mean) < 1:
        raise ShapeError(
            f"{where}: expected mean (sample, *batch), std that broadcasts to it and y (*batch), got "
            f"{tuple(mean.shape)}, {tuple(std.shape)} and {tuple(y.shape)}."
        )
    if not bool((std > 0).all()):
        raise DataError(f"{where}: std must be positive, got {float(std.min()):g}.")
    return std.to(mean.device).expand(mean.shape), y.to(mean.device)
