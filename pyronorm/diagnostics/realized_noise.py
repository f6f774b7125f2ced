"""How much noise the latents really are, relative to what they are added to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.display import axes_or_new, displayed, frame, in_line
from pyronorm.infer.data import Data
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.posterior import as_posterior
from pyronorm.infer.standardize import moments_of_standardized
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed
from pyronorm.stats import Moments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["RealizedNoise", "RealizedNoises", "realized_noise"]


@dataclass(frozen=True)
class RealizedNoise:
    r"""The noise of one layer.

    Attributes:
        layer: its name.
        nominal: :math:`1 / \overline{\operatorname{Var} \text{shift}}`, the ``n`` of the shifts as they
            are; infinite where nothing varies.
        realized: the ``n`` of the shifts that do the same to :math:`\hat x` standardized over the data.
        shift: that of the shifts alone, without what noise of the scale does to the mean of
            :math:`\hat x`.
        std: root mean square over channels of the standard deviation of :math:`\hat x` over the data.
        log_scale_std: root mean square over channels of the standard deviation of the log scale.
    """

    layer: str
    nominal: float
    realized: float
    shift: float
    std: float
    log_scale_std: float


@displayed
class RealizedNoises(list[RealizedNoise]):
    """The noise of each layer: a list that is a table in a notebook."""

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {f.name: [getattr(one, f.name) for one in self] for f in fields(RealizedNoise)}

    def __repr__(self) -> str:
        """The realized ``n`` of the layers."""
        return in_line("RealizedNoises", {one.layer: one.realized for one in self})

    def to_dataframe(self) -> pd.DataFrame:
        """A row per layer, with the fields of :class:`RealizedNoise` as columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        return frame(self._columns(), "RealizedNoises").set_index("layer")

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Nominal and realized ``n`` of each layer.

        Args:
            ax: where to draw; None for a new figure.

        Raises:
            OptionError: if ``ax`` is none.
        """
        ax = axes_or_new(ax)
        for name, marker in (("nominal", "o"), ("realized", "s")):
            values = [getattr(one, name) for one in self]
            ax.plot(range(len(self)), values, marker, fillstyle="none", label=name)
        ax.set_xticks(range(len(self)), [one.layer for one in self])
        ax.set_yscale("log")
        ax.set(xlabel="layer", ylabel="n of the noise")
        ax.legend()
        return ax


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
) -> RealizedNoises:
    r"""Measure the noise of each layer in units of what it is added to.

    A layer computes :math:`\text{scale}\,(\hat x + \text{shift})`. With the mean :math:`m` and
    deviation :math:`s` of :math:`\hat x` over the data, latents that act on
    :math:`\tilde x = (\hat x - m)/s`, as those of batch normalization do, do the same with

    .. math:: \frac1s \Big(\text{shift} + m\,\big(1 - \tfrac{1}{\text{scale}}\big)\Big)

    as shift, and the same scale. The realized ``n`` is one over its variance, averaged over channels.
    Batch normalization standardizes :math:`\hat x` over the data. Weight and analytic normalization
    do not once they are trained, and two things happen: the network outgrows a shift of fixed
    variance, and a mean that is not 0 turns noise of the scale into a shift.
    Latents relative to the data (:func:`pyronorm.standardize_latents`) realize what is nominal.

    Args:
        model: the model; its network runs in evaluation mode with neutral latents, and is not changed.
        posterior: any :class:`~pyronorm.infer.Posterior`.
        data: inputs ``x`` or pairs ``(x, y)``.
        num_samples: draws that variances are taken over; a posterior of fewer gives what it has.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws.

    Returns:
        One entry per layer that runs. Averages are over channels that are not constant.

    Raises:
        OptionError: if ``posterior`` is none, or a number makes no sense.
        DataError: if there is no batch.
        StatisticsError: if population statistics are missing or stale.
    """
    found = as_posterior(posterior, "realized_noise", model)
    number = min(num_samples, len(found)) if isinstance(found, Sized) else num_samples
    draws = found.draw(model, number, data=data, seed=seed)
    network = model.network
    with evaluation_mode(model):
        totals = moments_of_standardized(
            network, list(network.layers), data, None, batch_size, "realized_noise"
        )
    sizes = network.space.sizes
    added = network.standardization.shift(draws.shift, draws.scale)
    parts = (v.double().split(sizes, -1) for v in (draws.shift, added, draws.scale))
    return RealizedNoises(
        _of_layer(layer.name, totals[layer], *values)
        for layer, *values in zip(network.layers, *parts, strict=True)
        if layer in totals
    )


def _of_layer(
    name: str, moments: Moments, nominal: Tensor, added: Tensor, scale: Tensor
) -> RealizedNoise:
    varies = moments.var > 0  # a constant channel is no measure of noise
    std = moments.var.sqrt()
    shift = (added + moments.mean * (1 - 1 / scale)) / std

    def variance(values: Tensor) -> float:
        values = values[:, varies]
        return float(values.var(0).mean()) if len(values) > 1 and bool(varies.any()) else 0.0

    def inverse(value: float) -> float:
        return 1 / value if value else math.inf

    return RealizedNoise(
        name,
        inverse(variance(nominal)),
        inverse(variance(shift)),
        inverse(variance(added / std)),
        float(moments.var.mean().sqrt()),
        math.sqrt(variance(scale.log())),
    )
