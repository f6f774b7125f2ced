"""Latents relative to what normalizers make of the data: noise of n that means one thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyronorm.checks import Count, check_count, checked
from pyronorm.errors import DataError, StatisticsError
from pyronorm.infer.callbacks import Callback
from pyronorm.infer.data import Data, inputs, least_examples
from pyronorm.infer.pooling import Pool
from pyronorm.infer.population import batch_statistics_mode
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.calls import is_single_example
from pyronorm.stats import Moments
from pyronorm.stats.moments import layer_moments

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["StandardizedLatents", "moments_of_standardized", "standardize_latents"]


@torch.no_grad()
@checked
def standardize_latents(
    network: NormalizationModel | LatentNetwork,
    data: Data,
    num_batches: Count | None = None,
    batch_size: Count = 256,
) -> None:
    r"""Let the latents act on :math:`\hat x` standardized over data: a shift of 1 is one deviation.

    Batch normalization gives :math:`\hat x` the mean 0 and the variance 1 over the data, and so batch
    noise of ``n`` values has the variance :math:`1/n` relative to what it is added to. Other
    normalizers do not: once they are trained, :math:`\hat x` of weight and analytic normalization has
    standard deviations of up to 9 and means far from 0, so the network outgrows a shift of
    :math:`\mathcal N(0, 1/n)`, and noise of the scale moves the mean. Afterwards

    .. math::
        y = \text{weight} \cdot \big(m + s \cdot \text{scale}\,(\tilde x + \text{shift})\big) +
        \text{bias}, \qquad \tilde x = (\hat x - m)/s,

    with mean :math:`m` and deviation :math:`s` of each channel over the data, at neutral latents.
    Neutral latents, and so the network as it is, are unaffected. Every prior and guide means the same
    then, whatever the normalizer (:func:`pyronorm.diagnostics.realized_noise` shows it). Layers with
    mean and variance of the batch standardize already and are left as they are.

    The numbers are kept in ``network.standardization``, a part of the state of the model: constants
    until they are estimated again. They belong to the weights as :class:`~pyronorm.normalizers.Weight`'s
    start statistics do; in training use the callback :class:`pyronorm.StandardizedLatents`.
    ``network.standardization.clear()`` takes them away.

    Args:
        network: a LatentNetwork or a NormalizationModel; its :attr:`LatentNetwork.standardization`
            changes, and nothing else.
        data: training data, inputs or pairs; a few hundred examples are enough.
        num_batches: how many batches to use; None for all.
        batch_size: examples per batch, where the data do not come in batches.

    Raises:
        DataError: if there is no batch.
        OptionError: if the network is plain.
        StatisticsError: if what a layer makes of the data is not finite.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018), section 3,
    for noise relative to the statistics. Measuring them for other normalizers is ours.
    """
    latent = network.network if isinstance(network, NormalizationModel) else network
    latent.refuse_plain("standardize_latents")
    kinds = {layer: layer.normalizer for layer in latent.layers}
    layers = [k for k, kind in kinds.items() if not (kind.uses_batch and kind.keeps_population)]
    if not layers:
        latent.standardization.clear()
        return
    with batch_statistics_mode(latent.network):
        totals = moments_of_standardized(
            latent, layers, data, num_batches, batch_size, "standardize_latents"
        )
    mean = latent.pack({layer: moments.mean for layer, moments in totals.items()})
    std = latent.pack({layer: moments.var.sqrt() for layer, moments in totals.items()})
    known = torch.cat([mean.new_full((k.num_channels,), k in totals) for k in latent.layers]) > 0
    mean, std = torch.where(known, mean, 0.0), torch.where(known, std, 1.0)
    if not bool((mean + std).isfinite().all()):
        name = next(
            layer.name for layer, m in totals.items() if not (m.mean + m.var).isfinite().all()
        )
        raise StatisticsError(
            f"standardize_latents: what {name} makes of the data is not finite. Check the data and the "
            "weights."
        )
    latent.standardization.set(mean, std)


def moments_of_standardized(
    network: LatentNetwork,
    layers: list[LatentNorm],
    data: Data,
    num_batches: int | None,
    batch_size: int,
    where: str,
) -> dict[LatentNorm, Moments]:
    r"""Moments of :math:`\hat x` over data at neutral latents, of the layers that run.

    Args:
        network: runs in the mode it is in.
        layers: the layers to look at.
        data: inputs or pairs.
        num_batches: how many; None for all.
        batch_size: examples at once.
        where: the function's name, for messages.

    Raises:
        DataError: if there is no batch.
    """
    pool = Pool()

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, LatentNorm)
        x, *others = args
        pool.add(layer, layer_moments(_standardized(layer, x, others, kwargs)))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    seen = 0
    try:
        least = least_examples(network.network)
        for x in islice(inputs(data, network, batch_size, least=least), num_batches):
            network(x)
            pool.end_batch()
            seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise DataError(f"{where}: there is no batch.")
    return pool.totals()


@dataclass
class StandardizedLatents(Callback):
    r"""Keep the latents relative to what the normalizers make of the data, during training.

    Calls :func:`pyronorm.standardize_latents` at the beginning, after every ``every`` steps, after
    each epoch and at the end, so that noise of ``n`` means the same for every normalizer all the
    time. It costs a forward pass over ``data`` each time.

    Args:
        data: inputs or pairs of the training data: a few hundred examples, in a tensor.
        every: steps between two estimates.
        batch_size: examples at once.

    Raises:
        OptionError: if a number is below 1, or the network is plain.
    """

    data: Data = field(repr=False)
    every: Count = 50
    batch_size: Count = 256

    def __post_init__(self) -> None:
        check_count("StandardizedLatents", "every", self.every)
        check_count("StandardizedLatents", "batch_size", self.batch_size)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Estimate."""
        self._estimate(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        """Estimate every so many steps."""
        if trainer.steps % self.every == 0:
            self._estimate(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Estimate."""
        self._estimate(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Estimate."""
        self._estimate(trainer)

    def _estimate(self, trainer: Trainer) -> None:
        standardize_latents(trainer.model, self.data, batch_size=self.batch_size)


def _standardized(layer: LatentNorm, x: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """What the latents act on, channels on axis 1."""
    normalizer = layer.normalizer
    if args or kwargs:
        normalizer = normalizer.given(layer, tuple(args), kwargs)
    if is_single_example(layer, x):
        x = x[None]
    elif x.ndim in layer.first_ranks:
        x = x.movedim(1, -1)
    kept_last = layer.channel_last and normalizer.handles_channel_last
    if layer.channel_last and not kept_last:
        x = x.movedim(-1, 1)
    y = normalizer.normalize(layer, x, None, None)
    return y.movedim(-1, 1) if kept_last else y
