"""The negative ELBO as ``pn.fit`` minimizes it, for steps that are captured or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.infer.elbo import default_elbo


class Objective(nn.Module):
    """The negative ELBO per example, of any guide with a density, without waiting for the device.

    Args:
        model: the model; in training mode.
        guide: its guide.
        call: what takes the place of the network's forward, such as a compiled one, or one under
            mixed precision; None for itself. The densities of the latents stay in full precision.
    """

    def __init__(
        self,
        model: pn.NormalizationModel,
        guide: pn.guides.Guide,
        call: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.guide, self.call = model, guide, call
        self.elbo = default_elbo(guide)
        self.elbo.max_plate_nesting = 2  # given, since Pyro would run the model to find it

    def forward(self, x: Tensor, y: Tensor, kl_weight: Tensor | float = 1.0) -> Tensor:
        """The loss; ``kl_weight`` may be a tensor, which a captured step can change."""
        with (
            pyro.validation_enabled(False),  # it waits for the device at every site
            pyro.get_param_store().scope(),
            _KLWeight(kl_weight),
            called(self.model.network, self.call),
        ):
            return self.elbo.differentiable_loss(self.model, self.guide, x, y) / self.model.num_data


class _KLWeight(pyro.poutine.messenger.Messenger):
    """As the library's, which checks that the weight is a number, for a weight on the device."""

    def __init__(self, weight: Tensor | float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["scale"] = msg["scale"] * self.weight


@contextmanager
def called(network: nn.Module, call: Callable[..., Tensor] | None) -> Iterator[None]:
    """For the time of the block, calling the network calls something else."""
    if call is None:
        yield
        return
    network.forward = call
    try:
        yield
    finally:
        del network.forward
