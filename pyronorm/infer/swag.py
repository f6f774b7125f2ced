"""Collect the path of the latents in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyronorm.checks import Count, Natural, checked
from pyronorm.errors import OptionError
from pyronorm.guides import SWAG, Guide
from pyronorm.infer.callbacks import Callback
from pyronorm.infer.path import Path
from pyronorm.model import NormalizationModel

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
        self._path = Path(rank, "CollectSWAG")
        self.rank, self.after, self.every = rank, after, every

    def __len__(self) -> int:
        """How many points have been collected."""
        return len(self._path)

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

    @checked
    def update(self, z: Tensor) -> None:
        """Add a point of the path; :meth:`on_step_end` does it in training.

        Args:
            z: shifts and log scales, shape ``(2 * channel,)``.
        """
        self._path.add(z)

    def posterior(self, model: NormalizationModel) -> SWAG:
        """The Gaussian of the path.

        Args:
            model: the model that was trained.

        Raises:
            OptionError: if fewer than 2 points have been collected.
        """
        return SWAG.from_moments(model, *self._path.summary())

    def state_dict(self) -> dict[str, Any]:
        """What has been collected."""
        return self._path.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self._path.load_state_dict(state)
