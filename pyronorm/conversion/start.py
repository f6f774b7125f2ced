"""Start statistics of the normalizers that keep some: Weight and Analytic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyronorm.errors import ConversionError, StatisticsError
from pyronorm.normalizers.analytic import Analytic
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.weight import Weight
from pyronorm.propagation.propagate import Propagation, build_propagation
from pyronorm.propagation.rules import rule_for
from pyronorm.propagation.steps import Step, UnsupportedError
from pyronorm.propagation.tracing import Call, trace
from pyronorm.stats import channel_moments
from pyronorm.stats.propagation import Gaussian

__all__ = ["analytic_start", "data_dependent_start"]


@torch.no_grad()
def data_dependent_start(network: nn.Module, x: Tensor) -> None:
    r"""Set the start statistics of Weight and Analytic normalizers from a batch of data.

    One forward pass; each layer takes mean and biased standard deviation over the batch of what it
    normalizes (a Weight layer's projection :math:`\frac{v}{\lVert v\rVert} * x`, an Analytic layer's
    input standardized with the propagated statistics), seeing its predecessors already started.
    Afterwards each layer's :math:`\hat x` has mean 0 and variance 1 on that batch. This writes
    buffers: it is an explicit call, made once, before training.

    Args:
        network: a network with such normalizers, changed in place.
        x: a batch as the network takes it, as large as is convenient (hundreds of examples).

    Raises:
        ConversionError: if the network has no such normalizer.
        StatisticsError: if a channel is constant or not finite on ``x``.

    Source: Salimans & Kingma, "Weight Normalization" (NeurIPS 2016), section 3.
    """
    layers = _layers(network, (Weight, Analytic), "data_dependent_start")
    handles = [layer.register_forward_pre_hook(_start) for layer in layers]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def analytic_start(
    network: nn.Module, example_input: Tensor, normalizer: Analytic | None = None
) -> None:
    r"""Set the start statistics of Weight normalizers by moment propagation, without data.

    Each layer takes the mean and standard deviation that the weights before it give its projection
    :math:`\frac{v}{\lVert v\rVert} * x` for data of the given moments: what an
    :class:`~pyronorm.normalizers.Analytic` normalizer would normalize with at the start (with ``eps``
    added to the variance of the projection). This writes buffers: it is an explicit call, made
    once, before training.

    Args:
        network: a network with Weight normalizers, changed in place.
        example_input: a batch as the network takes it, to trace the network.
        normalizer: gives the moments of the input (and eps); None for standardized data.

    Raises:
        ConversionError: if the network has no Weight normalizer, or naming what cannot be followed.

    Source: as :class:`~pyronorm.normalizers.Analytic`.
    """
    normalizer = Analytic() if normalizer is None else normalizer
    layers = _layers(network, (Weight,), "analytic_start")
    names = {module: name for name, module in network.named_modules()}
    calls = trace(network, example_input)
    for layer in layers:
        assert isinstance(layer.normalizer, Weight)
        assert layer.linear is not None
        statistics = normalizer.input_statistics
        propagation = build_propagation(calls, names[layer], network, *statistics)
        mean, var = _after_linear(layer, calls.of_module(names[layer])[0], propagation)
        norm = layer.normalizer.norm(layer.linear)
        layer.state("start_mean").copy_(mean / norm)
        eps = 1e-5 if normalizer.eps is None else normalizer.eps
        layer.state("start_std").copy_((var / norm.square() + eps).sqrt())


def _after_linear(layer: LatentNorm, call: Call, propagation: Propagation) -> Gaussian:
    """Moments behind the linear layer that a Weight normalizer owns."""
    linear = layer.linear
    rule = rule_for(call, linear)
    assert linear is not None
    assert rule is not None
    try:
        return rule(
            Step(call, rule, linear, layer, {}), propagation(layer.state("start_mean").new_empty(0))
        )
    except UnsupportedError as error:
        raise ConversionError(
            f"analytic_start: cannot propagate moments through the {type(linear).__name__} of layer "
            f"{layer.name!r} {error}."
        ) from None


def _layers(
    network: nn.Module, kinds: tuple[type[Weight | Analytic], ...], where: str
) -> list[LatentNorm]:
    layers = [
        m
        for m in network.modules()
        if isinstance(m, LatentNorm) and isinstance(m.normalizer, kinds)
    ]
    if not layers:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConversionError(f"{where}: the network has no {names} normalizer.")
    return layers


def _start(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, LatentNorm)
    assert isinstance(layer.normalizer, (Weight, Analytic))
    projection = layer.normalizer.projection(layer, args[0])
    if layer.channel_last and layer.normalizer.handles_channel_last:
        projection = projection.movedim(-1, 1)
    moments = channel_moments(projection)
    mean, var = moments.mean, moments.var
    if not bool((var > 0).all() & var.isfinite().all()):
        raise StatisticsError(
            f"{layer.name}: {int((~(var > 0)).sum())} of {layer.num_channels} channels are constant "
            "or not finite on the given batch, so they give no start statistics. Pass a batch of "
            "real data with at least two different examples."
        )
    layer.state("start_mean").copy_(mean)
    layer.state("start_std").copy_(var.sqrt())
