"""Population statistics of batch normalizers, estimated over the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyronorm.checks import Count, checked
from pyronorm.devices import read_together, refuse_parts
from pyronorm.errors import DataError, StatisticsError
from pyronorm.infer.data import Data, inputs, least_examples
from pyronorm.infer.lengths import batches_of
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.own_sites import watched_own_sites
from pyronorm.infer.pooling import Pool
from pyronorm.infer.precision import running_in
from pyronorm.infer.processes import Processes
from pyronorm.infer.shares import Share
from pyronorm.inputs import run
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.freshness import NEVER_RAN, batch_layers, stamp_statistics
from pyronorm.normalizers.watch import unchecked
from pyronorm.progress import progress_bar
from pyronorm.stats import Moments, merge_moments

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "batch_statistics_mode",
    "estimate_population_statistics",
    "latent_network",
    "recording",
]


@contextmanager
def recording(
    layers: list[LatentNorm], recorder: Callable[[LatentNorm, Moments], None]
) -> Iterator[None]:
    """Have the layers report the batch moments they normalize with."""
    for layer in layers:
        layer.recorder = recorder
    try:
        yield
    finally:
        for layer in layers:
            layer.recorder = None


@contextmanager
def batch_statistics_mode(network: nn.Module, keep: Collection[LatentNorm] = ()) -> Iterator[None]:
    """Batch layers in training mode, but for some; everything else (dropout) in evaluation mode."""
    # What is estimated is not there yet, while other layers may use what they keep.
    with unchecked(), evaluation_mode(network):
        for layer in batch_layers(network):
            # not train(): a dropout that is part of it stays as it is
            layer.training = layer not in keep
        yield


@torch.no_grad()
@checked
def estimate_population_statistics(
    network: nn.Module,
    data: Data,
    num_batches: Count | None = None,
    batch_size: Count = 256,
    *,
    keep: Collection[LatentNorm] = (),
    precision: str | None = None,
    fabric: Fabric | None = None,
    progress: bool = True,
) -> None:
    r"""Estimate the population statistics of all batch normalizers over training data.

    The network runs over the data with batch statistics and with neutral latents; each layer's
    population mean and variance are those of all values it saw, pooled exactly over batches of any
    sizes (:func:`pyronorm.stats.merge_moments`):
    :math:`\mu = \mathbb E[M]`, :math:`\sigma^2 = \mathbb E[S^2] + \mathrm{Var}[M]`, biased; in the same
    way the covariances of batch whitening. Dropout and the like are off. Layers that never run, such as
    those of auxiliary heads for training, are named in a warning, and have none.

    This writes the buffers ``running_mean``, ``running_var`` (or ``running_cov``) and
    ``num_batches_tracked``; it is the only place that does. Networks without batch normalizers are
    left alone.

    Args:
        network: a converted network, a LatentNetwork or a NormalizationModel; changed in place.
        data: training data, in batches of the size used in training or larger.
        num_batches: how many batches to use; None for all.
        batch_size: examples per batch, where the data do not come in batches.
        keep: layers that normalize with the statistics they have, and keep them.
        precision: what the network runs in, as in :func:`pyronorm.predict`; statistics are taken in
            float32 at least.
        fabric: a Lightning Fabric of several processes, all of which call this: batches are dealt to
            them, and all get the statistics of all. Without one, a process estimates alone.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Raises:
        ConversionError: if the network is not converted.
        DataError: if there is no batch.
        OptionError: if ``num_batches`` is below 1, parameters are spread over processes, or there is no
            such precision on the device.
        StatisticsError: if a layer saw values that are not finite, or no layer saw any; or if a layer
            runs after the network has drawn a site of its own.

    Source: Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3 ("PreciseBN").
    """
    latent = latent_network(network)
    root = latent.network
    running = running_in("estimate_population_statistics", precision, latent.like.device)
    refuse_parts(root.named_parameters())
    layers = [layer for layer in batch_layers(root) if layer not in keep]
    if not layers:
        return
    processes = Processes(fabric)
    least = least_examples(root)
    spanning = any(layer.normalizer.spans_processes for layer in layers)
    share = Share(processes, rounds=spanning, limit=num_batches, least=least)
    pool = Pool()
    number = batches_of(data, num_batches, batch_size)

    def add(layer: LatentNorm, moments: Moments) -> None:
        seen_sites.check(layer.name)
        pool.add(layer, moments)

    seen = 0
    with processes.together():
        with (
            watched_own_sites(root, "estimate_population_statistics") as seen_sites,
            batch_statistics_mode(root, keep),
            recording(layers, add),
            progress_bar(
                "population statistics", number, show=progress and not processes.rank
            ) as bar,
        ):
            for x in inputs(data, latent, batch_size, least=least, share=share):
                seen_sites.start()
                with running(), processes.in_step() if spanning else nullcontext():
                    run(root, x)
                pool.end_batch()
                seen += 1
                bar.advance(to=seen * processes.size)
        totals = _of_all(processes, layers, pool.totals())
        seen = sum(processes.gather(seen))
    if spanning and processes.size > 1:
        seen //= processes.size
    if seen == 0:
        raise DataError("estimate_population_statistics: there is no batch.")
    unused = [layer for layer in layers if layer not in totals]
    layers = [layer for layer in layers if layer in totals]
    if not layers:
        raise StatisticsError(
            f"{unused[0].name}: the network never ran this layer, nor any other batch normalization, so "
            "there are no statistics."
        )
    buffers = {layer: layer.normalizer.population(totals[layer]) for layer in layers}
    finite = [
        # as they will be kept: float32 holds less than the sums
        torch.stack([v.to(layer.state(k).dtype).isfinite().all() for k, v in mine.items()]).all()
        for layer, mine in buffers.items()
    ]
    for layer, good in zip(layers, read_together(finite), strict=True):
        if not good:
            raise StatisticsError(
                f"{layer.name}: its inputs over the data are not finite. Check the data and whether "
                "training has diverged."
            )
    for layer, mine in buffers.items():
        for key, value in mine.items():
            layer.state(key).copy_(value)
        layer.state("num_batches_tracked").fill_(seen)
    for layer in unused:
        layer.state("num_batches_tracked").fill_(NEVER_RAN)
    stamp_statistics(root)
    if unused:
        names = ", ".join(layer.name for layer in unused)
        warnings.warn(
            f"estimate_population_statistics: the network never ran {names} on these data, so there are "
            "no statistics of it. Its latents change nothing; if it runs later on, it is refused.",
            stacklevel=2,
        )


def _of_all(
    processes: Processes, layers: list[LatentNorm], mine: dict[LatentNorm, Moments]
) -> dict[LatentNorm, Moments]:
    """The moments over the data of all processes; those of some layers are that already."""
    if processes.size == 1:
        return mine
    totals: dict[LatentNorm, Moments] = {}
    for theirs in processes.gather([_on_host(mine.get(layer)) for layer in layers]):
        for layer, moments in zip(layers, theirs, strict=True):
            if moments is None:
                continue
            if layer not in totals:
                totals[layer] = moments
            elif not layer.normalizer.spans_processes:
                totals[layer] = merge_moments(totals[layer], moments)
    return totals


def _on_host(moments: Moments | None) -> Moments | None:
    if moments is None:
        return None
    cov = None if moments.cov is None else moments.cov.cpu()
    return Moments(moments.count, moments.mean.cpu(), moments.var.cpu(), cov)


def latent_network(network: nn.Module) -> LatentNetwork:
    """The LatentNetwork of a NormalizationModel, itself, or around a converted network."""
    if isinstance(network, NormalizationModel):
        return network.network
    return LatentNetwork.of(network)
