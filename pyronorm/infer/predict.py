"""Posterior predictive distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyronorm.errors import DataError
from pyronorm.infer.data import Data, as_batches, evaluation_mode, split
from pyronorm.infer.draws import Chains, Draws, draw_latents
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel

__all__ = ["evaluate_draws", "log_likelihoods", "predict", "predictive_nll"]


def predict(
    model: NormalizationModel,
    guide: Callable[..., Any] | Chains,
    data: Data,
    num_samples: int = 32,
    *,
    batch_size: int = 256,
    keep_samples: bool = True,
) -> Prediction:
    r"""Predict with the posterior of a guide: an average over draws of the latents.

    :math:`p(y | x) = \frac1S\sum_s p(y | x, z_s)` with :math:`z_s \sim q`. The same draws serve all
    examples, since the latents are global. The network is in evaluation mode for the time of the
    call; nothing is changed. Memory is bounded by ``batch_size`` and, per batch, by the chunks of
    :class:`~pyronorm.LatentNetwork`; equal draws are evaluated once.

    Args:
        model: the model.
        guide: one of :mod:`pyronorm.guides`, a trained Pyro autoguide, a guide of your own, or
            chains of :func:`pyronorm.run_nuts`.
        data: inputs ``x``, alone or in pairs ``(x, y)`` of which ``y`` is not used.
        num_samples: ``S``, number of draws.
        batch_size: examples at once, where the data do not come in batches.
        keep_samples: whether to keep the mean given each draw, ``S`` times as large as ``mean``.

    Returns:
        The prediction, on the model's device.

    Raises:
        DataError: if there are no data.
        StatisticsError: if population statistics are missing or stale.
    """
    parts: list[Prediction] = []
    batches = as_batches(data, batch_size)
    draws = draw_latents(model, guide, num_samples, batches)
    with torch.no_grad():
        for _, _, output in evaluate_draws(model, draws, batches):
            parts.append(model.likelihood.predict(output, keep_samples=keep_samples))
    return Prediction.join(parts)


def evaluate_draws(
    model: NormalizationModel, draws: Draws, data: Data, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Evaluate the network for draws of its latents, batch by batch.

    Args:
        model: the model; its network is in evaluation mode during each batch.
        draws: draws of the latents.
        data: inputs ``x`` or pairs ``(x, y)``.
        batch_size: examples at once, where the data do not come in batches.

    Yields:
        ``x``, ``y`` (or None), and the network's output of shape ``(sample, batch, *out)``.

    Raises:
        DataError: if there are no data, or inputs that are not finite.
        StatisticsError: if population statistics are missing or stale.
    """
    network = model.network
    shift, scale, index = _unique(draws)
    network.check_statistics()
    empty = True
    for position, batch in enumerate(as_batches(data, batch_size)):
        x, y = split(batch)
        x = network.prepare(x)
        y = None if y is None else y.to(x.device)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(f"data: batch {position} has inputs that are not finite.")
        empty = False
        with evaluation_mode(model):
            output = network(x, shift, scale)
        yield x, y, output.to(torch.promote_types(output.dtype, torch.float32))[index]
    if empty:
        raise DataError("data: there is no batch.")


def _unique(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Different draws, (draw, 1, channel), and which of them each draw is."""
    if not draws.shift.shape[1]:  # a plain network: nothing to draw
        nothing = draws.shift[:1, None]
        return nothing, nothing, torch.zeros(len(draws), dtype=torch.long, device=nothing.device)
    latents = torch.stack([draws.shift, draws.scale], dim=1)
    unique, index = torch.unique(latents, dim=0, return_inverse=True)
    return unique[:, 0, None], unique[:, 1, None], index


@torch.no_grad()
def log_likelihoods(
    model: NormalizationModel, draws: Draws, data: Data, batch_size: int = 256
) -> Tensor:
    """Log likelihood of each example under each draw.

    Args:
        model: the model.
        draws: draws of the latents.
        data: pairs ``(x, y)``.
        batch_size: examples at once, where the data do not come in batches.

    Returns:
        Shape ``(sample, example)``, in nats.

    Raises:
        DataError: if there is no ``y``, or ``y`` is impossible.
        ShapeError: if ``y`` does not fit the network's output.
    """
    parts = []
    for _, y, output in evaluate_draws(model, draws, data, batch_size):
        if y is None:
            raise DataError("data: the log likelihood needs pairs (x, y), got x alone.")
        parts.append(model.likelihood.log_prob(output, y, 1))
    return torch.cat(parts, dim=1)


def predictive_nll(
    model: NormalizationModel,
    guide: Callable[..., Any] | Chains,
    data: Data,
    num_samples: int = 32,
    *,
    batch_size: int = 256,
) -> float:
    r"""Mean negative log predictive density :math:`-\log\frac1S\sum_s p(y|x,z_s)`, in nats.

    Args:
        model: the model.
        guide: as in :func:`predict`.
        data: pairs ``(x, y)``.
        num_samples: ``S``, number of draws.
        batch_size: examples at once, where the data do not come in batches.
    """
    batches = as_batches(data, batch_size)
    draws = draw_latents(model, guide, num_samples, batches)
    log_p = log_likelihoods(model, draws, batches)
    return float(math.log(num_samples) - torch.logsumexp(log_p, 0).mean())
