"""Monte-Carlo dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pyronorm.checks import Count, checked
from pyronorm.errors import DataError, OptionError
from pyronorm.guides import Point
from pyronorm.infer.data import Data, as_batches, inputs
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.posterior import as_posterior
from pyronorm.latents import Draws
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seeded

__all__ = ["predict_dropout"]


@checked
def predict_dropout(
    model: NormalizationModel,
    data: Data,
    num_samples: Count = 32,
    *,
    posterior: Any = None,
    batch_size: Count = 256,
    keep_samples: bool = True,
    seed: Seed = None,
) -> Prediction:
    r"""Predict with dropout: an average over passes, each with masks of its own.

    :math:`p(y | x) = \frac1S\sum_s p(y | x, m_s)`. Dropout modules alone are in training mode for the
    time of the call; normalization layers use their population statistics. Every example has masks of
    its own in every pass. Dropout that is no module (``torch.nn.functional.dropout``, that within
    ``nn.MultiheadAttention``) stays switched off.

    Args:
        model: the model; of a network without normalization, :class:`~pyronorm.LatentNetwork` with
            ``plain=True``.
        data: as in :func:`pyronorm.predict`.
        num_samples: ``S``, number of passes.
        posterior: of the latents, one draw for each pass; None for the neutral latents.
        batch_size: examples at once, where the data do not come in batches.
        keep_samples: whether to keep the mean given each pass.
        seed: for draws and masks, see :func:`pyronorm.randomness.seeded`.

    Returns:
        The prediction; its mutual information is between the data and the masks (and the latents).

    Raises:
        OptionError: if the network has no dropout module, or ``num_samples`` is below 1.
        DataError: if there are no data, or inputs that are not finite.
        StatisticsError: if population statistics are missing or stale.

    Source: Gal & Ghahramani, "Dropout as a Bayesian Approximation" (ICML 2016), eq. 6.
    """
    dropouts = _dropouts(model)
    batches = as_batches(data, batch_size)
    posterior = Point(model) if posterior is None else posterior
    found = as_posterior(posterior, "predict_dropout", model)
    model.network.check_statistics()
    with torch.no_grad(), seeded(seed, model.network.like):
        draws = found.draw(model, num_samples, data=batches)
        parts = [
            model.likelihood.predict(output, keep_samples=keep_samples)
            for output in _outputs(model, dropouts, draws, batches, batch_size)
        ]
    return Prediction.join(parts)


def _outputs(
    model: NormalizationModel,
    dropouts: list[nn.Module],
    draws: Draws,
    batches: Data,
    batch_size: Count,
) -> Iterator[Tensor]:
    """Yield outputs of all passes, (pass, batch, *out), by batch."""
    network = model.network
    for position, x in enumerate(inputs(batches, network, batch_size)):
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(f"data: batch {position} has inputs that are not finite.")
        with evaluation_mode(model):
            for module in dropouts:
                module.training = True
            passes = zip(draws.shift, draws.scale, strict=True)
            output = torch.stack([network(x, shift, scale) for shift, scale in passes])
        yield output.to(torch.promote_types(output.dtype, torch.float32))


def _dropouts(model: NormalizationModel) -> list[nn.Module]:
    network = model.network.network
    found = [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    if not found:
        raise OptionError(
            f"predict_dropout: {type(network).__name__} has no dropout module with p > 0, so all passes "
            "would be the same. The networks of pyronorm.networks take dropout=."
        )
    return list(found)
