"""Population statistics that belong to each draw of the latents."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.devices import read_together
from pyronorm.errors import ConversionError, DataError, OptionError, StatisticsError
from pyronorm.infer.data import Data, inputs, least_examples
from pyronorm.infer.ensemble import Ensemble
from pyronorm.infer.lengths import batches_of
from pyronorm.infer.own_sites import given_own_sites, watched_own_sites
from pyronorm.infer.pooling import Pool
from pyronorm.infer.population import batch_statistics_mode, recording
from pyronorm.infer.posterior import as_posterior, choose_num_samples
from pyronorm.infer.precision import running_in
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded
from pyronorm.stats import Moments

__all__ = ["refresh_draws"]


@torch.no_grad()
@checked
def refresh_draws(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count | None = None,
    *,
    num_batches: Count | None = None,
    batch_size: Count = 256,
    keep: Collection[LatentNorm] = (),
    precision: str | None = None,
    seed: Seed = None,
    progress: bool = True,
) -> Draws:
    r"""Draw from a posterior, with population statistics estimated anew for each draw.

    In training, a batch normalizer takes the noise of the layers before it into its own batch
    statistics and so removes a part of it again: an upstream scale cancels altogether. Population
    statistics are estimated at neutral latents and do not, so with a batch normalizer and explicit
    noise they predict with another model than the one that was trained. Here the network runs over the
    data with batch statistics and with each draw :math:`(\text{shift}, \text{scale})` in force, as
    :func:`pyronorm.estimate_population_statistics` does with neutral latents. The pooled
    mean :math:`M` and deviation :math:`S = \sqrt{\mathrm{var} + \epsilon}` of each channel are then
    folded into latents relative to the statistics :math:`(\mu, \sigma)` that the network keeps:

    .. math::
        a = \frac{\mu - M}{\sigma}, \quad c = \frac{\sigma}{S}, \qquad
        \text{shift}' = a + \frac{\text{shift}}{c}, \quad \text{scale}' = \text{scale} \cdot c,

    since :math:`\text{scale}\,((x - M)/S + \text{shift}) = \text{scale}'((x - \mu)/\sigma +
    \text{shift}')`. Nothing else changes: the result is a posterior like any other, for
    :func:`pyronorm.predict`, :func:`pyronorm.to_arviz` and :func:`pyronorm.save`.

    It costs ``num_samples`` forward passes over the data. Layers without batch statistics keep
    their latents, so for networks without batch normalizers this is ``posterior.draw``. Not for a
    posterior of a network whose population statistics were in force in training
    (``train_network=False``): its own draws are right as they are.

    Args:
        model: the model, with current population statistics.
        posterior: any :class:`~pyronorm.infer.Posterior` that was trained with batch statistics in
            force: an explicit guide, say. Banks hold statistics of real batches and do not need it.
        data: training data, in batches of the size used in training or larger.
        num_samples: number of draws; None as in :func:`pyronorm.predict`.
        num_batches: how many batches of the data to use; None for all.
        batch_size: examples per batch, where the data do not come in batches.
        keep: layers whose population statistics were in force in training, and stay.
        precision: what the network runs in, as in :func:`pyronorm.predict`; statistics are taken in
            float32 at least.
        seed: for the draws, see :func:`pyronorm.randomness.seeded`.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The draws, without a log density.

    Raises:
        ConversionError: if a layer has batch whitening, whose statistics are not a mean and a
            variance per channel.
        DataError: if there is no batch.
        OptionError: if ``posterior`` is none or an ensemble, or has not that many draws; or if
            there is no such precision on the device.
        StatisticsError: if population statistics are missing or stale, or a draw's are not finite.

    Source: Maddox, Garipov, Izmailov, Vetrov & Wilson, "A Simple Baseline for Bayesian Uncertainty in
    Deep Learning" (NeurIPS 2019), section 4.1, which re-estimates them for each draw of the weights.
    """
    running = running_in("refresh_draws", precision, model.network.like.device)
    found = as_posterior(posterior, "refresh_draws", model)
    number = choose_num_samples(found, num_samples, 32, "refresh_draws")
    if isinstance(found, Ensemble):
        raise OptionError(
            "refresh_draws: the members of an ensemble have statistics of their own. Refresh each: "
            "pyronorm.Ensemble([(m, pyronorm.refresh_draws(m, p, data)) for m, p in ensemble.members])."
        )
    draws = found.draw(model, number, data=data, seed=seed)
    return _refreshed(
        model.network, draws, data, num_batches, batch_size, keep, running, seed, progress
    )


def _refreshed(
    network: LatentNetwork,
    draws: Draws,
    data: Data,
    num_batches: int | None,
    batch_size: int,
    keep: Collection[LatentNorm],
    running: Callable[[], AbstractContextManager[object]],
    seed: Seed,
    progress: bool,
) -> Draws:
    layers = [layer for layer in batch_layers(network.network) if layer not in keep]
    for layer in layers:
        if not layer.normalizer.keeps_population:
            raise ConversionError(
                f"refresh_draws: {layer.name} ({type(layer.normalizer).__name__}) has batch statistics "
                "that are not a mean and a variance per channel, so they cannot be folded into a shift "
                "and a scale. Predict with the posterior as it is, or use the Batch normalizer."
            )
    network.check_statistics()
    layers = [layer for layer in layers if not layer.unused]
    draws = draws.to(network.like)
    if not layers:
        return replace(draws, log_density=None)
    shifts, scales, index = draws.unique()
    unique = torch.stack([shifts, scales], dim=1)
    pools = [Pool() for _ in unique]
    number = batches_of(data, num_batches, batch_size)
    current = pools[0]

    def add(layer: LatentNorm, moments: Moments) -> None:
        seen_sites.check(layer.name)
        current.add(layer, moments)

    seen = 0
    with (
        seeded(seed, network.like),
        watched_own_sites(network.network, "refresh_draws") as seen_sites,
        batch_statistics_mode(network.network, keep),
        recording(layers, add),
        progress_bar("statistics of draws", number, show=progress) as bar,
    ):
        batches = inputs(data, network, batch_size, least=least_examples(network.network))
        for x in islice(batches, num_batches):
            for place, (shift, scale) in enumerate(unique):
                current = pools[place]
                seen_sites.start()
                given = given_own_sites(draws.others, place) if draws.others else nullcontext()
                with given, running():
                    network(x, shift, scale)
                current.end_batch()
            seen += 1
            bar.advance()
    if seen == 0:
        raise DataError("refresh_draws: there is no batch.")
    totals = [pool.totals() for pool in pools]
    _refuse_non_finite(layers, totals, draws.shift)
    folded = torch.stack(
        [_folded(network, mine, *pair) for mine, pair in zip(totals, unique, strict=True)]
    )[index]
    return replace(
        draws,
        shift=folded[:, 0],
        scale=folded[:, 1],
        log_density=None,
        weights=network.weights(),  # relative to the statistics of these
    )


def _folded(
    network: LatentNetwork, totals: dict[LatentNorm, Moments], shift: Tensor, scale: Tensor
) -> Tensor:
    """The draw with its statistics, relative to those that the network keeps; (2, channel)."""
    folded = []
    sizes = network.space.sizes
    for layer, a, b in zip(network.layers, shift.split(sizes), scale.split(sizes), strict=True):
        reference = layer.normalizer.reference(layer, a.double())
        if layer not in totals or reference is None:
            folded.append(torch.stack([a, b]))
            continue
        mean, std = reference
        moments = totals[layer]
        ratio = std / (moments.var + layer.eps).sqrt()
        folded.append(torch.stack([(mean - moments.mean) / std + a / ratio, b * ratio]).to(a))
    return torch.cat(folded, dim=1)


def _refuse_non_finite(
    layers: list[LatentNorm], totals: list[dict[LatentNorm, Moments]], like: Tensor
) -> None:
    present = [layer for layer in layers if layer in totals[0]]
    finite = [
        # in the precision of the latents, which hold less than the sums
        torch.stack(
            [(t[layer].mean + t[layer].var).to(like).isfinite().all() for t in totals]
        ).all()
        for layer in present
    ]
    for layer, good in zip(present, read_together(finite), strict=True):
        if not good:
            raise StatisticsError(
                f"refresh_draws: the inputs of {layer.name} are not finite for some draw. Check the "
                "data, and the posterior's scales."
            )
