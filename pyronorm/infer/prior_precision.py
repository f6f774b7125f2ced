"""The prior precision of Laplace's approximation, by held-out data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from pyronorm.checks import Count, Positive, checked
from pyronorm.errors import OptionError
from pyronorm.guides import Curvature, Laplace
from pyronorm.infer.data import Data
from pyronorm.infer.predict import predictive_nll
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seed_value

__all__ = ["choose_prior_precision"]

_Made = TypeVar("_Made", bound=Laplace)
_GRID = tuple(10.0 ** (k / 2) for k in range(-2, 11))


@torch.no_grad()
@checked
def choose_prior_precision(
    model: NormalizationModel,
    structure: type[_Made],
    curvature: Curvature,
    validation: Data,
    candidates: Sequence[Positive] = _GRID,
    *,
    num_samples: Count = 32,
    batch_size: Count = 256,
    seed: Seed = None,
) -> _Made:
    r"""Laplace's approximation with the prior precision that predicts held-out data best.

    The least predictive NLL over a grid, with the same standard normal draws for each. Unlike the
    marginal likelihood (``structure.from_evidence``) it sees what the sampled network predicts, also
    around a point that is no mode.

    Args:
        model: the model that the curvature is of.
        structure: one of the Laplace guides, such as :class:`pyronorm.guides.FullLaplace`.
        curvature: from :func:`pyronorm.collect_curvature`.
        validation: held-out pairs ``(x, y)`` or ``(x, y, weight)``.
        candidates: precisions to try; by default half powers of 10 from 0.1 to 100,000.
        num_samples: draws of each prediction.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws, see :func:`pyronorm.randomness.seeded`.

    Returns:
        The best of them.

    Raises:
        OptionError: if there is no candidate, ``structure`` is none, or no prediction is finite.
        DataError: if there are no data.

    Source: Ritter, Botev & Barber, "A Scalable Laplace Approximation for Neural Networks" (ICLR 2018).
    """
    where = "choose_prior_precision"
    if not callable(getattr(structure, "from_curvature", None)):
        raise OptionError(
            f"{where}: structure must be a class of Laplace guides, such as guides.FullLaplace, got "
            f"{structure!r}."
        )
    if not len(candidates):
        raise OptionError(f"{where}: needs at least one candidate.")
    start = seed_value(seed)
    best: tuple[float, _Made] | None = None
    for precision in candidates:
        guide = structure.from_curvature(model, curvature, precision)
        nll = predictive_nll(
            model, guide, validation, num_samples, batch_size=batch_size, seed=start
        )
        if math.isfinite(nll) and (best is None or nll < best[0]):
            best = nll, guide
    if best is None:
        raise OptionError(f"{where}: no candidate has a finite predictive NLL; try larger ones.")
    return best[1]
