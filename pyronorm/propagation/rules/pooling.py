"""Averages and maxima of neighbouring positions."""

from __future__ import annotations

import math

from torch import nn

from pyronorm.propagation.steps import Operation, Step, UnsupportedError, each
from pyronorm.stats import propagation as moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["OPERATIONS"]


def _interpolate(step: Step, x: Gaussian) -> Gaussian:
    """Sums of neighbouring positions, with the weights that the interpolation has."""
    mode = step.option(3, "mode", "nearest")
    align, antialias = bool(step.option(4, "align_corners")), bool(step.option(6, "antialias"))
    sizes = step.shape[2:], step.out_shape[2:]
    return moments.interpolation_moments(x, *sizes, mode, align, antialias)


def _average(step: Step, x: Gaussian) -> Gaussian:
    if step.option(6, "divisor_override") is not None:
        raise UnsupportedError("with a divisor_override")
    return moments.average_moments(x, _window(step))


def _maximum(step: Step, x: Gaussian) -> Gaussian:
    """The largest of Gaussian values; then an activation before it, which leaves the order alone.

    Behind a ReLU half of the values are 0, and a Gaussian with their moments has a maximum of about
    the right mean but of a third of the variance.
    """
    y = moments.maximum_moments(x, max(1, round(_window(step))))
    return y if step.activation is None else step.activation.moments(y)


def _window(step: Step) -> float:
    """Values that go into one output of a pooling; the harmonic mean where windows differ."""
    if step.name.lower().startswith("adaptive"):
        return moments.adaptive_window(step.shape[2:], step.out_shape[2:])
    return math.prod(each(step.option(1, "kernel_size"), len(step.shape) - 2))


def _mean(step: Step, x: Gaussian) -> Gaussian:
    axes = step.option(1, "dim")
    axes = (axes,) if isinstance(axes, int) else axes
    spatial = axes and all(axis % len(step.shape) >= 2 for axis in axes)
    if not spatial or len(step.out_shape) < 2:
        raise UnsupportedError(f"over the axes {axes} of shape {tuple(step.shape)}")
    return moments.average_moments(x, math.prod(step.shape[axis] for axis in axes))


_AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def _names(kind: str) -> tuple[str, ...]:
    return tuple(f"{way}{kind}_pool{axes}d" for way in ("", "adaptive_") for axes in (1, 2, 3))


OPERATIONS = (
    Operation(_interpolate, (nn.Upsample,), ("interpolate",)),
    Operation(_average, _AVERAGES, _names("avg")),
    Operation(_maximum, _MAXIMA, _names("max"), maximum=True),
    Operation(_mean, (), ("mean",)),
)
