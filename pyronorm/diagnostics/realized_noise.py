"""How much noise the latents really are, relative to what they are added to."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.errors import DataError
from pyronorm.infer.data import Data, evaluation_mode, inputs
from pyronorm.infer.posterior import as_posterior
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.randomness import Seed
from pyronorm.stats import Moments, channel_moments, merge_moments

__all__ = ["RealizedNoise", "realized_noise"]


@dataclass(frozen=True)
class RealizedNoise:
    r"""The noise of one layer.

    Attributes:
        layer: its name.
        nominal: :math:`1 / \overline{\operatorname{Var} \text{shift}}`, the ``n`` of the shifts as they
            are; infinite where nothing varies.
        realized: :math:`1 / \overline{\operatorname{Var} \text{shift} / \operatorname{Var} \hat x}`,
            the ``n`` that has the same effect where :math:`\hat x` is standardized.
        std: root mean square over channels of the standard deviation of :math:`\hat x` over the data.
        log_scale_std: root mean square over channels of the standard deviation of the log scale.
    """

    layer: str
    nominal: float
    realized: float
    std: float
    log_scale_std: float


@torch.no_grad()
@checked
def realized_noise(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count = 256,
    *,
    batch_size: Count = 256,
    seed: Seed = 0,
) -> list[RealizedNoise]:
    r"""Measure the noise of each layer in units of what it is added to.

    A layer computes :math:`\text{scale}\,(\hat x + \text{shift})`. Batch and group normalization
    standardize :math:`\hat x` over the data, more or less; weight and analytic normalization do not
    once they are trained, so the network outgrows a shift of fixed variance:
    the realized ``n`` is above the nominal one by the variance of :math:`\hat x`. Noise of the scale
    multiplies, so it is relative already.

    Args:
        model: the model; its network runs in evaluation mode with neutral latents, and is not changed.
        posterior: any :class:`~pyronorm.infer.Posterior`.
        data: inputs ``x`` or pairs ``(x, y)``.
        num_samples: draws that variances are taken over; a posterior of fewer gives what it has.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws.

    Returns:
        One entry per layer that runs. Averages are over channels.

    Raises:
        OptionError: if ``posterior`` is none, or a number makes no sense.
        DataError: if there is no batch.
        StatisticsError: if population statistics are missing or stale.
    """
    found = as_posterior(posterior, "realized_noise", model)
    number = min(num_samples, len(found)) if isinstance(found, Sized) else num_samples
    draws = found.draw(model, number, data=data, seed=seed)
    totals: dict[LatentNorm, Moments] = {}

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, LatentNorm)
        moments = channel_moments(_standardized(layer, args[0])).double()
        totals[layer] = merge_moments(totals[layer], moments) if layer in totals else moments

    network = model.network
    handles = [layer.register_forward_pre_hook(hook) for layer in network.layers]
    try:
        with evaluation_mode(model):
            for x in inputs(data, network, batch_size):
                network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not totals:
        raise DataError("realized_noise: there is no batch.")
    sizes = network.space.sizes
    shifts, logs = draws.shift.double(), draws.scale.double().log()
    variances = ((v.var(0) if len(v) > 1 else torch.zeros_like(v[0])) for v in (shifts, logs))
    shift, log_scale = (v.split(sizes) for v in variances)
    return [
        RealizedNoise(
            layer.name,
            float(1 / shift[i].mean()),
            float(1 / (shift[i] / totals[layer].var).mean()),
            float(totals[layer].var.mean().sqrt()),
            float(log_scale[i].mean().sqrt()),
        )
        for i, layer in enumerate(network.layers)
        if layer in totals
    ]


def _standardized(layer: LatentNorm, x: Tensor) -> Tensor:
    """What the latents act on, channels on axis 1."""
    kept_last = layer.channel_last and layer.normalizer.handles_channel_last
    if layer.channel_last and not kept_last:
        x = x.movedim(-1, 1)
    y = layer.normalizer.normalize(layer, x, None, None)
    return y.movedim(-1, 1) if kept_last else y
