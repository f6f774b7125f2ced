"""Prediction with several networks, each with a posterior of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyronorm.errors import DataError, OptionError
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.draws import draw_latents
from pyronorm.infer.predict import evaluate_draws
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel

__all__ = ["Members", "ensemble_nll", "predict_ensemble"]

Members = Sequence[tuple[NormalizationModel, Callable[..., Any]]]
"""The networks of an ensemble: pairs of a model and a guide for it."""


def predict_ensemble(
    members: Members,
    data: Data,
    num_samples: int = 32,
    *,
    batch_size: int = 256,
    keep_samples: bool = True,
) -> Prediction:
    r"""Predict with a deep ensemble whose members have posteriors of their latents.

    Several training runs over one architecture give several sets of weights. A bank or a guide belongs
    to the weights it was collected or trained with, so the mixture over runs is one of *pairs*,

    .. math::
        p(y | x) = \frac{1}{KS} \sum_{k=1}^K \sum_{s=1}^S p(y | x, w_k, z_{ks}), \qquad
        z_{ks} \sim q_k .

    With :class:`pyronorm.guides.BatchNoise` that is batch noise on top of a deep ensemble, with
    :class:`pyronorm.guides.Point` a deep ensemble. The mutual information is between the data and the
    pair of member and draw.

    Args:
        members: pairs of a model and a guide for it. The likelihoods must be the same, parameters
            included; the networks may differ in all but their output.
        data: as in :func:`pyronorm.predict`; it is iterated once.
        num_samples: ``S``, number of draws of *each* member.
        batch_size: examples at once, where the data do not come in batches.
        keep_samples: whether to keep the mean given each draw, members one after the other.

    Returns:
        The prediction, on the first member's device.

    Raises:
        OptionError: if there is no member, or the likelihoods differ.
        DataError: if there are no data.
        StatisticsError: if a member's population statistics are missing or stale.

    Source: Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles" (NeurIPS 2017), with a posterior for each member.
    """
    parts: list[Prediction] = []
    with torch.no_grad():
        for _, output in _evaluate(members, data, num_samples, batch_size):
            parts.append(members[0][0].likelihood.predict(output, keep_samples=keep_samples))
    return Prediction.join(parts)


def ensemble_nll(
    members: Members, data: Data, num_samples: int = 32, *, batch_size: int = 256
) -> float:
    r"""Mean negative log predictive density :math:`-\log\frac{1}{KS}\sum_{ks} p(y|x,w_k,z_{ks})`.

    Args:
        members: as in :func:`predict_ensemble`.
        data: pairs ``(x, y)``.
        num_samples: ``S``, number of draws of each member.
        batch_size: examples at once, where the data do not come in batches.

    Returns:
        The mean over examples, in nats.

    Raises:
        OptionError: if there is no member, or the likelihoods differ.
        DataError: if there are no data, no ``y``, or impossible ones.
    """
    parts: list[Tensor] = []
    with torch.no_grad():
        for y, output in _evaluate(members, data, num_samples, batch_size):
            if y is None:
                raise DataError("data: the log likelihood needs pairs (x, y), got x alone.")
            likelihood = members[0][0].likelihood
            parts.append(torch.logsumexp(likelihood.log_prob(output, y, 1), 0))
    return math.log(num_samples * len(members)) - float(torch.cat(parts).mean())


def _evaluate(
    members: Members, data: Data, num_samples: int, batch_size: int
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Yield ``y`` and the outputs of all members, (member * sample, batch, *out), by batch."""
    _check(members)
    batches = as_batches(data, batch_size)
    draws = [draw_latents(model, guide, num_samples, batches) for model, guide in members]
    empty = True
    # Batch by batch through all members: a loader that shuffles has another order in each pass.
    for batch in batches:
        empty = False
        outputs: list[Tensor] = []
        first: Tensor | None = None
        for (model, _), mine in zip(members, draws, strict=True):
            for _, y, output in evaluate_draws(model, mine, [batch]):
                first = y if not outputs else first
                outputs.append(output if not outputs else output.to(outputs[0].device))
        yield first, torch.cat(outputs)
    if empty:
        raise DataError("data: there is no batch.")


def _check(members: Members) -> None:
    if not members:
        raise OptionError("members: an ensemble needs at least one pair (model, guide).")
    first = members[0][0].likelihood
    state = first.state_dict()
    for position, (model, _) in enumerate(members):
        other = model.likelihood.state_dict()
        same = type(model.likelihood) is type(first) and other.keys() == state.keys()
        if not same or any(not torch.equal(v.cpu(), state[k].cpu()) for k, v in other.items()):
            raise OptionError(
                f"members: the likelihood of member {position} ({type(model.likelihood).__name__}) "
                f"is not that of member 0 ({type(first).__name__}), parameters included. Build all "
                "models with one likelihood; a learned noise has to be shared or fixed."
            )
