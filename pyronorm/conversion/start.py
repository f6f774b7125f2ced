"""Start statistics of the normalizers that keep some: Weight and Analytic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.errors import ConversionError
from pyronorm.inputs import first_tensor, move_to, run
from pyronorm.normalizers.analytic import Analytic
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.start import StartNormalizer
from pyronorm.normalizers.watch import unchecked
from pyronorm.propagation.operations import operation_for
from pyronorm.propagation.propagate import Propagation, build_propagation
from pyronorm.propagation.steps import Step, UnsupportedError
from pyronorm.propagation.tracing import Call, trace
from pyronorm.stats import channel_moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["analytic_start", "data_dependent_start"]


@torch.no_grad()
@unchecked()
@checked
def data_dependent_start(network: nn.Module, x: Any) -> None:
    r"""Set the start statistics of Weight and Analytic normalizers from a batch of data.

    One forward pass; each layer takes mean and biased standard deviation over the batch of what it
    normalizes (a Weight layer's projection :math:`\frac{v}{\lVert v\rVert} * x`, an Analytic layer's
    input standardized with the propagated statistics), seeing its predecessors already started.
    Afterwards each layer's :math:`\hat x` has mean 0 and variance 1 on that batch. This writes
    buffers: it is an explicit call, made once, before training.

    Args:
        network: a network with such normalizers, changed in place.
        x: a batch as the network takes it, as large as is convenient (hundreds of examples), on any
            device.

    Raises:
        ConversionError: if the network has no such normalizer.
        StatisticsError: if a channel is constant or not finite on ``x``.

    Source: Salimans & Kingma, "Weight Normalization" (NeurIPS 2016), section 3.
    """
    layers = _layers(network, "data_dependent_start")
    handles = [layer.register_forward_pre_hook(_start) for layer, _ in layers]
    first_tensor(x)  # refuses what has none
    try:
        run(network, move_to(network, x))
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
@unchecked()
@checked
def analytic_start(
    network: nn.Module, example_input: Any, normalizer: Analytic | None = None
) -> None:
    r"""Set the start statistics of Weight normalizers by moment propagation, without data.

    Each layer takes the mean and standard deviation that the weights before it give its projection
    :math:`\frac{v}{\lVert v\rVert} * x` for data of the given moments: what an
    :class:`~pyronorm.normalizers.Analytic` normalizer would normalize with at the start (with ``eps``
    added to the variance of the projection). This writes buffers: it is an explicit call, made
    once, before training.

    Args:
        network: a network with Weight normalizers, changed in place.
        example_input: a batch as the network takes it, on any device, to trace the network.
        normalizer: gives the moments of the input (and eps); None for standardized data.

    Raises:
        ConversionError: if the network has no Weight normalizer, or naming what cannot be followed.

    Source: as :class:`~pyronorm.normalizers.Analytic`.
    """
    normalizer = Analytic() if normalizer is None else normalizer
    layers = [x for x in _layers(network, "analytic_start") if x[1].owns_linear]
    if not layers:
        raise ConversionError(
            "analytic_start: the network has no normalizer that owns a linear layer, such as Weight."
        )
    names = {module: name for name, module in network.named_modules()}
    calls = trace(network, example_input)
    eps = 1e-5 if normalizer.eps is None else normalizer.eps
    for layer, kind in layers:
        propagation = build_propagation(calls, names[layer], network, *normalizer.input_statistics)
        mean, var = _after_linear(layer, calls.of_module(names[layer])[0], propagation)
        mean, var = kind.of_projection(layer, mean, var)
        kind.start(layer, mean, (var + eps).sqrt())


def _after_linear(layer: LatentNorm, call: Call, propagation: Propagation) -> Gaussian:
    """Moments behind the linear layer that a normalizer owns."""
    linear = layer.get_submodule("linear")
    operation = operation_for(call, linear)
    assert operation is not None
    step = Step(call, operation, linear, layer, {})
    try:
        return step.moments(propagation(layer.state("start_mean").new_empty(0)))
    except UnsupportedError as error:
        raise ConversionError(
            f"analytic_start: cannot propagate moments through the {type(linear).__name__} of layer "
            f"{layer.name!r} {error}."
        ) from None


def _layers(network: nn.Module, where: str) -> list[tuple[LatentNorm, StartNormalizer]]:
    layers = [
        (module, module.normalizer)
        for module in network.modules()
        if isinstance(module, LatentNorm) and isinstance(module.normalizer, StartNormalizer)
    ]
    if not layers:
        raise ConversionError(
            f"{where}: the network has no normalizer with start statistics, such as Weight or Analytic."
        )
    return layers


def _start(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, LatentNorm)
    assert isinstance(layer.normalizer, StartNormalizer)
    projection = layer.normalizer.projection(layer, args[0])
    if layer.channel_last and layer.normalizer.handles_channel_last:
        projection = projection.movedim(-1, 1)
    moments = channel_moments(projection)
    layer.normalizer.start(layer, moments.mean, moments.var.sqrt())
