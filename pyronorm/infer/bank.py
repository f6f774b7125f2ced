"""Collect the joint batch statistics of all layers."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory
from pyronorm.errors import ConversionError, DataError, StatisticsError
from pyronorm.guides import StatisticsBank
from pyronorm.infer.data import Data, inputs
from pyronorm.infer.lengths import batches_of
from pyronorm.infer.own_sites import watched_own_sites
from pyronorm.infer.population import batch_statistics_mode, latent_network, recording
from pyronorm.infer.precision import running_in
from pyronorm.infer.processes import Processes
from pyronorm.infer.shares import Share
from pyronorm.inputs import num_examples, run
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded
from pyronorm.stats import Moments

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["collect_bank"]


@torch.no_grad()
@checked
def collect_bank(
    network: nn.Module,
    data: Data,
    num_batches: Count | None = None,
    batch_size: Count = 256,
    *,
    precision: str | None = None,
    seed: Seed = None,
    fabric: Fabric | None = None,
    progress: bool = True,
) -> StatisticsBank:
    r"""Collect batch statistics of all layers for many training batches.

    For each batch the network runs once with batch statistics, so layer ``k + 1`` sees layer ``k``
    normalized by the same batch; the row keeps mean and biased variance of every channel. The
    network is not changed.

    Args:
        network: a converted network, LatentNetwork or NormalizationModel with batch normalizers and
            current population statistics, which the latents are relative to.
        data: training data in random batches of the size used in training: a DataLoader with
            ``shuffle=True`` (without replacement) or a ``RandomSampler(replacement=True)``. It is
            iterated as often as needed. Tensors and data sets are shuffled in batches of
            ``batch_size``. A last batch that is smaller is left out.
        num_batches: rows of the bank; None for one pass over the data.
        batch_size: examples per batch, where the data do not come in batches.
        precision: what the network runs in, as in :func:`pyronorm.predict`; statistics are taken in
            float32 at least.
        seed: makes the order repeatable, and leaves torch's generators as they were; a loader with a
            generator of its own draws from that. None draws from torch's generators.
        fabric: a Lightning Fabric of several processes, all of which call this: batches are dealt to
            them, and all get the bank of all, that of one process. Without one, a process collects
            alone.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The bank; it is a posterior itself. Give it to :class:`pyronorm.guides.MonteCarloBatchNorm`,
        :class:`pyronorm.guides.StochasticBatchNorm` or :meth:`pyronorm.guides.LowRank.from_bank`.

    Raises:
        ConversionError: if the network has no batch normalizer, runs one twice, has batch
            whitening, whose noise is not a shift and a scale, or statistics for each example.
        DataError: if there is no batch, only batches of one example, or batches of another size than
            the virtual batches of a :class:`~pyronorm.normalizers.Ghost` normalizer.
        OptionError: if there is no such precision on the device.
        StatisticsError: if population statistics are missing or stale, or the inputs not finite;
            or if a layer runs after the network has drawn a site of its own.

    Source: Teye, Azizpour & Smith (ICML 2018), algorithm 1.
    """
    latent = latent_network(network)
    running = running_in("collect_bank", precision, latent.like.device)
    layers = [layer for layer in batch_layers(latent.network) if not layer.unused]
    if not layers:
        raise ConversionError(
            f"collect_bank: {type(latent.network).__name__} has no batch normalizer, so no batch "
            "noise."
        )
    for layer in layers:
        if not layer.normalizer.keeps_population:
            raise ConversionError(
                f"collect_bank: {layer.name} ({type(layer.normalizer).__name__}) has batch statistics "
                "that are not a mean and a variance per channel, so its batch noise is not a shift and "
                "a scale (whitening multiplies by a random matrix). Use a guide that needs no bank "
                "(MeanField, BatchNoise, LowRank), or the Batch normalizer."
            )
        if not layer.normalizer.shared_by_batch:
            raise ConversionError(
                f"collect_bank: {layer.name} ({type(layer.normalizer).__name__}) has other statistics "
                "for each example of a batch, so a batch has no single row. Its noise is that of the "
                "law: use guides.BatchNoise(model, batch_size - 1)."
            )
    if num_batches is not None:
        check_memory(
            f"collect_bank of {num_batches:,} batches",
            2 * num_batches * latent.space.num_channels,
            latent.like,
            "Collect fewer batches.",
        )
    latent.check_statistics()
    row: dict[LatentNorm, Moments] = {}

    def note(layer: LatentNorm, moments: Moments) -> None:
        seen_sites.check(layer.name)
        if layer in row:
            raise ConversionError(
                f"collect_bank: {layer.name} runs more than once per batch, or on several virtual "
                "batches, so it has no single batch mean and variance. Give each place a layer of "
                "its own."
            )
        row[layer] = moments

    processes = Processes(fabric)
    number = batches_of(data, None, batch_size) if num_batches is None else num_batches
    spanning = any(layer.normalizer.spans_processes for layer in layers)
    like = latent.like
    unknown = {layer: _no_moments(layer, like) for layer in latent.layers}
    rows: list[Tensor] = []
    size = 0
    with (
        processes.together(),
        seeded(seed, latent.like),
        watched_own_sites(latent.network, "collect_bank") as seen_sites,
        batch_statistics_mode(latent.network),
        recording(layers, note),
        progress_bar("bank", number, show=progress and not processes.rank) as bar,
    ):
        while not rows or (num_batches is not None and len(rows) < num_batches):
            missing = None if num_batches is None else num_batches - len(rows)
            limit = missing if processes.size > 1 else None
            share = Share(processes, rounds=spanning, limit=limit, equal=True)
            mine: list[Tensor] = []
            for x in inputs(data, latent, batch_size, shuffle=True, share=share):
                examples = num_examples(x)
                if examples < size:
                    continue  # the rest of a pass
                if size and examples > size:
                    raise DataError(
                        f"collect_bank: batches must have one size, got {size} and then {examples}."
                    )
                size = examples
                _refuse_other_sizes(layers, size)
                row.clear()
                seen_sites.start()
                with running(), processes.in_step() if spanning else nullcontext():
                    run(latent.network, x)
                found = [row.get(layer, none) for layer, none in unknown.items()]
                parts = [m.mean for m in found] + [m.var for m in found]
                mine.append(torch.cat([part.to(like.device) for part in parts]).to(like))
                bar.advance(to=len(rows) + len(mine) * processes.size)
                if len(mine) == missing:
                    break
            mine = mine if spanning else _dealt_back(processes, mine)
            if not mine:
                raise DataError("collect_bank: there is no batch.")
            rows += mine
        sizes = processes.gather(size)
    if spanning:
        size = sum(sizes)
    elif len(set(sizes) - {0}) > 1:
        raise DataError(f"collect_bank: batches must have one size, got {sizes}, by process.")
    else:
        size = max(sizes)
    rows = rows[:num_batches]
    mean, var = (part.contiguous() for part in torch.stack(rows).to(like.device).chunk(2, dim=1))
    _refuse_non_finite(latent, layers, mean + var)
    return StatisticsBank(
        space=latent.space,
        batch_size=size,
        mean=mean,
        var=var,
        reference_mean=latent.pack({x: x.state("running_mean") for x in layers}),
        reference_var=latent.pack({x: x.state("running_var") for x in layers}),
        eps=latent.pack({x: torch.full((x.num_channels,), x.eps) for x in layers}),
    )


def _no_moments(layer: LatentNorm, like: Tensor) -> Moments:
    nan = like.new_full((layer.num_channels,), torch.nan)
    return Moments(0, nan, nan)


def _dealt_back(processes: Processes, mine: list[Tensor]) -> list[Tensor]:
    """The rows of all processes, in the order in which batches were dealt to them."""
    if processes.size == 1:
        return mine
    found = processes.gather([row.cpu() for row in mine])
    return [row for round_ in zip_longest(*found) for row in round_ if row is not None]


def _refuse_other_sizes(layers: list[LatentNorm], size: int) -> None:
    for layer in layers:
        expected = layer.normalizer.fixed_batch_size
        if expected not in (None, size):
            raise DataError(
                f"collect_bank: a row of the bank is one virtual batch, which in {layer.name} has "
                f"{expected} examples, but a batch of the data has {size}. Give data in batches of "
                f"that size, or tensors with batch_size={expected}."
            )


def _refuse_non_finite(latent: LatentNetwork, layers: list[LatentNorm], rows: Tensor) -> None:
    parts = rows.split(latent.space.sizes, dim=-1)
    for layer, part in zip(latent.layers, parts, strict=True):
        if layer in layers and not bool(part.isfinite().all()):
            raise StatisticsError(
                f"collect_bank: {layer.name} has batch statistics that are not finite. Check the "
                "data and whether training has diverged."
            )
