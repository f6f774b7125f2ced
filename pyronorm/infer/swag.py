"""Collect the path of the latents in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyronorm.checks import Count, Natural, checked
from pyronorm.errors import OptionError
from pyronorm.guides import SWAG, Guide
from pyronorm.infer.callbacks import Callback
from pyronorm.model import NormalizationModel
from pyronorm.stats import Moments, merge_moments

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["CollectSWAG"]


class CollectSWAG(Callback):
    r"""Collect moments of the path that shifts and log scales take in training, for SWAG.

    ::

        swag = pn.CollectSWAG(rank=20, after=200)
        sgd = pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5))
        pn.fit(model, pn.guides.MAP(model), train, optimization=sgd, train_network=False,
               callbacks=[swag])
        pn.predict(model, swag.posterior(model), x)

    For a *trained* network whose weights stay, from the mode on and at a constant rate. The path is
    that of the guide's medians: of the point, for :class:`pyronorm.guides.MAP`.

    Args:
        rank: how many of the last deviations to keep, at least 2.
        after: steps to leave out first.
        every: steps from one point of the path to the next.

    Raises:
        OptionError: if ``rank`` is below 2; in training, if the network is trained as well, or the
            guide is none of :mod:`pyronorm.guides`.

    Source: see :class:`pyronorm.guides.SWAG`.
    """

    @checked
    def __init__(self, rank: Count = 20, *, after: Natural = 0, every: Count = 1) -> None:
        if rank < 2:
            raise OptionError(f"CollectSWAG: rank must be at least 2, got {rank}.")
        self.rank, self.after, self.every = rank, after, every
        self._moments: Moments | None = None
        self._deviations: list[Tensor] = []

    def __len__(self) -> int:
        """How many points have been collected."""
        return 0 if self._moments is None else self._moments.count

    def on_fit_start(self, trainer: Trainer) -> None:
        """Refuse a path that is not one of latents alone."""
        if not isinstance(trainer.guide, Guide):
            raise OptionError(
                "CollectSWAG: needs a guide of pyronorm.guides, MAP as a rule, got "
                f"{type(trainer.guide).__name__}."
            )
        trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        if any(id(p) in trained for p in trainer.model.network.parameters()):
            raise OptionError(
                "CollectSWAG: the network is trained as well, so its latents belong to other weights at "
                "each point. Train it first, then fit(..., train_network=False)."
            )

    def on_step_end(self, trainer: Trainer) -> None:
        """Take a point."""
        if trainer.steps <= self.after or (trainer.steps - self.after - 1) % self.every:
            return
        guide: Any = trainer.guide
        median = guide.median()
        space = guide.space
        self.update(torch.cat([median[space.shift_site], median[space.scale_site].log()]))

    @torch.no_grad()
    @checked
    def update(self, z: Tensor) -> None:
        """Add a point of the path; :meth:`on_step_end` does it in training.

        Args:
            z: shifts and log scales, shape ``(2 * channel,)``.
        """
        z = z.detach().double()
        point = Moments(1, z.clone(), torch.zeros_like(z))
        before = self._moments
        self._moments = point if before is None else merge_moments(before, point)
        self._deviations = [*self._deviations, z - self._moments.mean][-self.rank :]

    def posterior(self, model: NormalizationModel) -> SWAG:
        """The Gaussian of the path.

        Args:
            model: the model that was trained.

        Raises:
            OptionError: if fewer than 2 points have been collected.
        """
        moments = self._moments
        if moments is None or moments.count < 2:
            raise OptionError(
                f"CollectSWAG: needs at least 2 points of the path, got {len(self)}. Train longer, or "
                "with a smaller after= or every=."
            )
        deviations = torch.stack(self._deviations, 1)
        return SWAG.from_moments(model, moments.mean, moments.var, deviations)

    def state_dict(self) -> dict[str, Any]:
        """What has been collected."""
        kept = self._moments
        moments = (
            None if kept is None else {"count": kept.count, "mean": kept.mean, "var": kept.var}
        )
        return {"moments": moments, "deviations": list(self._deviations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self._moments = None if state["moments"] is None else Moments(**state["moments"])
        self._deviations = list(state["deviations"])
