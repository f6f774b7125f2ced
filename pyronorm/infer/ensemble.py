"""Several networks, each with a posterior of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyronorm.checks import Count, checked
from pyronorm.errors import OptionError
from pyronorm.infer.data import Data
from pyronorm.infer.posterior import Posterior, as_posterior
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seeded

__all__ = ["Ensemble", "Members", "draw_members"]

Members = Sequence[tuple[NormalizationModel, Draws]]
"""Networks and the draws that belong to each."""


class Ensemble:
    r"""A deep ensemble whose members have posteriors of their latents: a posterior itself.

    Several training runs over one architecture give several sets of weights. A bank or a guide belongs
    to the weights it was collected or trained with, so the mixture over runs is one of *pairs*,

    .. math::
        p(y | x) = \frac{1}{KS} \sum_{k=1}^K \sum_{s=1}^S p(y | x, w_k, z_{ks}), \qquad
        z_{ks} \sim q_k .

    With a statistics bank that is batch noise on top of a deep ensemble, with
    :class:`pyronorm.guides.Point` a deep ensemble. The mutual information of a prediction is between
    the data and the pair of member and draw. Use it with one of its own models::

        ensemble = pn.Ensemble([(model, guide), (model2, guide2)])
        pn.predict(ensemble.model, ensemble, x)

    Args:
        members: pairs of a model and a posterior for it. The likelihoods must be the same, parameters
            included; the networks may differ in all but their output.

    Raises:
        OptionError: if there is no member, one is no pair of model and posterior, or the likelihoods
            differ.

    Source: Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles" (NeurIPS 2017), with a posterior for each member.
    """

    @checked
    def __init__(self, members: Iterable[Any]) -> None:
        pairs = list(members)
        if not pairs:
            raise OptionError("Ensemble: an ensemble needs at least one pair (model, posterior).")
        for position, pair in enumerate(pairs):
            if not (
                isinstance(pair, tuple)
                and len(pair) == 2
                and isinstance(pair[0], NormalizationModel)
            ):
                raise OptionError(
                    f"Ensemble: member {position} must be a pair (NormalizationModel, posterior), got "
                    f"{type(pair).__name__}."
                )
        self.members: tuple[tuple[NormalizationModel, Posterior], ...] = tuple(
            (model, as_posterior(posterior, f"Ensemble, member {position}", model))
            for position, (model, posterior) in enumerate(pairs)
        )
        self._check()

    def __repr__(self) -> str:
        """Name the members' posteriors."""
        kinds = dict.fromkeys(type(posterior).__name__ for _, posterior in self.members)
        return f"Ensemble({len(self.members)} networks with {', '.join(kinds)})"

    @property
    def model(self) -> NormalizationModel:
        """The first member's model; its likelihood is that of all."""
        return self.members[0][0]

    @checked
    def draw(
        self, model: NormalizationModel, num_samples: Count, *, data: Any = None, seed: Seed = None
    ) -> Draws:
        """Draw the latents of every member, each member a chain.

        Args:
            model: one of the members' models.
            num_samples: number of draws of *each* member.
            data: for posteriors that look at data.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            ``K`` chains of ``num_samples`` draws.

        Raises:
            OptionError: if the model is none of the ensemble's.
            ShapeError: if the members' latents differ.
        """
        like = model.network.like
        return Draws.join(
            [
                replace(d, num_chains=1, stats={}).to(like)
                for _, d in self.draw_each(model, num_samples, data=data, seed=seed)
            ]
        )

    def draw_each(
        self, model: NormalizationModel, num_samples: Count, *, data: Any = None, seed: Seed = None
    ) -> Members:
        """The same by member, for networks whose latents may differ."""
        if all(model is not mine for mine, _ in self.members):
            raise OptionError(
                "Ensemble: the model given is none of the ensemble's; give one of its own, "
                "ensemble.model."
            )
        with seeded(seed, *(mine.network.like for mine, _ in self.members)):
            return [(m, p.draw(m, num_samples, data=data)) for m, p in self.members]

    def _check(self) -> None:
        first = self.model.likelihood
        state = first.state_dict()
        for position, (model, _) in enumerate(self.members):
            other = model.likelihood.state_dict()
            same = type(model.likelihood) is type(first) and other.keys() == state.keys()
            if not same or any(not torch.equal(v.cpu(), state[k].cpu()) for k, v in other.items()):
                raise OptionError(
                    f"Ensemble: the likelihood of member {position} "
                    f"({type(model.likelihood).__name__}) is not that of member 0 "
                    f"({type(first).__name__}), parameters included. Build all models with one "
                    "likelihood; a learned noise has to be shared or fixed."
                )


def draw_members(
    model: NormalizationModel,
    posterior: Posterior,
    num_samples: Count,
    data: Data | None = None,
    seed: Seed = None,
) -> Members:
    """Draws of a posterior with the network they belong to; of an ensemble, by member."""
    if isinstance(posterior, Ensemble):
        return posterior.draw_each(model, num_samples, data=data, seed=seed)
    return [(model, posterior.draw(model, num_samples, data=data, seed=seed))]
