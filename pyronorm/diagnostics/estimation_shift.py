"""Estimation shift: population statistics against what test data have, and what the mode costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.diagnostics.layer_inputs import watching
from pyronorm.display import displayed
from pyronorm.errors import ConversionError, DataError
from pyronorm.infer.batch import split
from pyronorm.infer.data import Data, as_batches, inputs
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.population import batch_statistics_mode, latent_network
from pyronorm.inputs import all_finite, num_examples, run
from pyronorm.latents import LatentSpace
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.randomness import Seed
from pyronorm.stats import Moments, merge_moments
from pyronorm.stats.moments import layer_moments

__all__ = ["EstimationShift", "ModeGap", "estimation_shift", "mode_gap"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class EstimationShift:
    r"""Population statistics and those of test data, per channel.

    All of shape ``(channel,)``, NaN for layers without population statistics.

    Attributes:
        space: names the layers and channels.
        estimated_mean: the network's population means :math:`\hat\mu`.
        estimated_var: its population variances :math:`\hat\sigma^2`, biased.
        mean: means :math:`\mu` of what the layers see in evaluation mode.
        var: variances :math:`\sigma^2` of the same, biased.
        eps: what each channel's layer adds to a variance.
    """

    space: LatentSpace
    estimated_mean: Float[Tensor, " channel"]
    estimated_var: Float[Tensor, " channel"]
    mean: Float[Tensor, " channel"]
    var: Float[Tensor, " channel"]
    eps: Float[Tensor, " channel"]

    @property
    def of_mean(self) -> dict[str, float]:
        r""":math:`\lVert\hat\mu - \mu\rVert_2` by layer."""
        return self._by_layer(self.estimated_mean - self.mean, root_mean=False)

    @property
    def of_var(self) -> dict[str, float]:
        r""":math:`\lVert\hat\sigma^2 - \sigma^2\rVert_2` by layer."""
        return self._by_layer(self.estimated_var - self.var, root_mean=False)

    @property
    def of_mean_normalized(self) -> dict[str, float]:
        r"""Root mean square over channels of :math:`(\hat\mu - \mu)/\sqrt{\hat\sigma^2 + \epsilon}`.

        In the units of the latent ``shift``, so comparable with batch noise.
        """
        std = (self.estimated_var + self.eps).sqrt()
        return self._by_layer((self.estimated_mean - self.mean) / std, root_mean=True)

    @property
    def of_var_normalized(self) -> dict[str, float]:
        r"""The same of :math:`\frac12\log\frac{\hat\sigma^2 + \epsilon}{\sigma^2 + \epsilon}`.

        In the units of the latent ``log_scale``.
        """
        ratio = (self.estimated_var + self.eps) / (self.var + self.eps)
        return self._by_layer(ratio.log() / 2, root_mean=True)

    def _by_layer(self, value: Tensor, *, root_mean: bool) -> dict[str, float]:
        return {
            name: float(part.norm()) / (math.sqrt(len(part)) if root_mean else 1.0)
            for name, part in self.space.unpack(value).items()
            if not bool(part.isnan().any())
        }


@torch.no_grad()
@checked
def estimation_shift(network: nn.Module, data: Data, batch_size: Count = 256) -> EstimationShift:
    r"""Compare the population statistics with those that data have, layer by layer.

    The network runs in evaluation mode with neutral latents, each layer normalizing with its
    population statistics :math:`(\hat\mu, \hat\sigma^2)`; :math:`(\mu, \sigma^2)` are mean and variance
    of what each layer sees there, over all examples and positions. The difference has two parts: the
    data are others than those of the estimate, and the network is another, since while the estimate
    was made the layers before normalized with their batches. The second grows with depth and falls
    with batch size.

    Args:
        network: a converted network, LatentNetwork or NormalizationModel, with current population
            statistics; not changed.
        data: test data.
        batch_size: examples at once, where the data do not come in batches.

    Raises:
        ConversionError: if no layer has population statistics.
        DataError: if there is no batch.
        StatisticsError: if the statistics are missing or stale.

    Source: Huang et al., "Delving into the Estimation Shift of Batch Normalization in a Network" (CVPR
    2022). Departs from the paper: we could not confirm how it normalizes; the
    normalized versions are ours.
    """
    latent = latent_network(network)
    population = {layer: _population(layer) for layer in latent.layers}
    known = {layer: pair for layer, pair in population.items() if pair is not None}
    if not known:
        raise ConversionError(
            f"estimation_shift: no layer of {type(latent.network).__name__} has population statistics."
        )
    latent.check_statistics()
    totals: dict[LatentNorm, Moments] = {}

    def see(layer: LatentNorm, x: Tensor) -> None:
        moments = layer_moments(x)
        totals[layer] = merge_moments(totals[layer], moments) if layer in totals else moments

    with evaluation_mode(latent.network), watching(list(known), see):
        for x in inputs(data, latent, batch_size):
            run(latent.network, x)
    if not totals:
        raise DataError("estimation_shift: there is no batch.")
    return EstimationShift(
        latent.space,
        latent.pack({layer: pair[0] for layer, pair in known.items()}),
        latent.pack({layer: pair[1] for layer, pair in known.items()}),
        latent.pack({layer: total.mean for layer, total in totals.items()}),
        latent.pack({layer: total.var for layer, total in totals.items()}),
        latent.pack({x: torch.full((x.num_channels,), x.eps) for x in known}),
    )


def _population(layer: LatentNorm) -> tuple[Tensor, Tensor] | None:
    """Estimated mean and variance per channel; of batch whitening the diagonal."""
    names = dict(layer.named_buffers(recurse=False))
    if "running_var" in names:
        return names["running_mean"], names["running_var"]
    if "running_cov" in names:
        return names["running_mean"], names["running_cov"].diagonal(dim1=1, dim2=2).flatten()
    return None


@displayed
@dataclass(frozen=True, repr=False)
class ModeGap:
    r"""What a network does with batch statistics, against evaluation mode.

    Attributes:
        batch_size: examples per batch.
        batch_loss: mean negative log likelihood with batch statistics, in nats per example.
        evaluation_loss: the same in evaluation mode.
        output_distance: mean over examples of
            :math:`\lVert f_{\text{batch}}(x) - f_{\text{eval}}(x)\rVert_2/\sqrt d` over the ``d`` values
            of the output.
    """

    batch_size: Count
    batch_loss: float
    evaluation_loss: float
    output_distance: float

    @property
    def loss_gap(self) -> float:
        """``evaluation_loss - batch_loss`` in nats: negative where batch noise costs the more."""
        return self.evaluation_loss - self.batch_loss


@torch.no_grad()
@checked
def mode_gap(
    model: NormalizationModel, data: Data, batch_size: Count = 32, *, seed: Seed = 0
) -> ModeGap:
    """Compare losses and outputs with batch statistics and in evaluation mode, on the same examples.

    The latents are neutral; dropout and the like are off both times.

    Args:
        model: the model; not changed.
        data: pairs ``(x, y)``. Batches smaller than the first are left out.
        batch_size: examples per batch, where the data do not come in batches; they are shuffled.
        seed: seeds the order, apart from torch's own generator.

    Raises:
        DataError: if there is no batch, no ``y``, or an impossible one.
        StatisticsError: if population statistics are missing or stale.
    """
    latent = model.network
    latent.check_statistics()
    size = 0
    examples = scored = 0.0
    losses = torch.zeros(2, dtype=torch.float64)
    distance = 0.0
    for batch in as_batches(data, batch_size, shuffle=True, seed=seed):
        whole = split(batch).to(latent)
        if not bool(all_finite(whole.x)):
            raise DataError("mode_gap: the data have inputs that are not finite.")
        x, (y, weight) = whole.x, whole.targets("mode_gap")
        if num_examples(x) < size:
            continue
        size = size or num_examples(x)
        count = torch.ones(len(y), device=y.device) if weight is None else weight
        with batch_statistics_mode(latent.network):
            noisy = latent(x)
        with evaluation_mode(latent.network):
            clean = latent(x)
        for position, output in enumerate((noisy, clean)):
            losses[position] -= float((model.likelihood.log_prob(output, y) * count).sum())
        apart = (noisy - clean).flatten(1).double()
        distance += float((apart.norm(dim=1) * count).sum()) / math.sqrt(apart.shape[1])
        examples += float(count.sum())
        scored += float((model.likelihood.present(y) * count).sum())
    if not examples:
        raise DataError("mode_gap: there is no batch.")
    if not scored:
        raise DataError("mode_gap: all values of y are missing.")
    noisy_loss, clean_loss = (losses / scored).tolist()
    return ModeGap(size, noisy_loss, clean_loss, distance / examples)
