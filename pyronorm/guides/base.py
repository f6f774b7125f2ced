"""What a guide is."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides.hyper import HyperGuide
from pyronorm.latents import LatentNetwork, LatentSpace
from pyronorm.model import NormalizationModel

__all__ = ["Guide"]


class Guide(PyroModule):
    """A distribution of the latents of a network: an approximate posterior.

    A guide samples the sites ``shift`` and ``scale`` and nothing of the data. It works wherever Pyro
    takes a guide. A subclass says what it samples in :meth:`sample_sites`. Where the model's prior has
    hyperparameters, a guide with a density has a log-normal factor for them, ``hyper``
    (:class:`~pyronorm.guides.HyperGuide`), independent of the latents.

    Args:
        model: the model whose latents to sample; for a Pyro model of your own the
            :class:`~pyronorm.LatentNetwork` in it.
    """

    has_density: ClassVar[bool] = True
    """Whether the log density exists; without it there is no ELBO."""

    has_analytic_kl: ClassVar[bool] = False
    """Whether ``TraceMeanField_ELBO`` finds closed forms for the KL divergence to most priors."""

    needs_latents: ClassVar[bool] = True
    """Whether it is of no use for a plain network."""

    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__()
        if not isinstance(model, (NormalizationModel, LatentNetwork)):
            raise OptionError(
                f"{type(self).__name__}: expected a NormalizationModel, or the LatentNetwork of a "
                f"model of your own, got {type(model).__name__}."
            )
        if self.needs_latents:
            network = model if isinstance(model, LatentNetwork) else model.network
            network.refuse_plain(type(self).__name__)
        # A tuple hides the model from torch: it is no part of the guide.
        self._model = (model,)
        self.hyper: HyperGuide | None = None
        if self.has_density and self._hyperprior():
            assert isinstance(model, NormalizationModel)
            self.hyper = HyperGuide(model.prior, self.space, self._like())

    @property
    def space(self) -> LatentSpace:
        """The space of the latents."""
        return self._model[0].space

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the sites; arguments are those of the model and are not used.

        Returns:
            The values by site name, with the plates around the call in front.
        """
        model = self._model[0]
        known = set() if self.hyper is None else set(self.hyper.sites)
        if self.has_density and known != self._hyperprior():
            raise OptionError(
                f"{type(self).__name__}: the model's prior has the hyperparameters "
                f"{sorted(self._hyperprior())}, the guide was made for {sorted(known)}. Make the guide "
                "after the prior was set."
            )
        with nullcontext() if isinstance(model, LatentNetwork) else model.draw_plate():
            hyper = {} if self.hyper is None else self.hyper()
            shift, scale = self.sample_sites()
        return {**hyper, self.space.shift_site: shift, self.space.scale_site: scale}

    @abstractmethod
    def sample_sites(self) -> tuple[Tensor, Tensor]:
        """Sample the two Pyro sites and return ``shift`` and ``scale``."""

    def _hyperprior(self) -> set[str]:
        """The sites of the prior's hyperparameters."""
        model = self._model[0]
        if isinstance(model, LatentNetwork):
            return set()
        return set(model.prior.hyperprior(self.space, self._like()))

    def _like(self) -> Tensor:
        """An empty tensor with the device and dtype of the latents."""
        model = self._model[0]
        return (model if isinstance(model, LatentNetwork) else model.network).like

    def _vector(self, value: float | Tensor, name: str) -> Tensor:
        """A number for every channel, or a given vector, as a fresh tensor."""
        channels = self.space.num_channels
        if isinstance(value, Tensor) and value.shape not in ((), (channels,)):
            raise ShapeError(
                f"{type(self).__name__}: {name} must be a number or have shape ({channels},), got "
                f"{tuple(value.shape)}."
            )
        like = self._like()
        return torch.as_tensor(value, device=like.device, dtype=like.dtype).expand(channels).clone()

    def _add_location(self, name: str, value: Tensor, neutral: bool) -> None:
        """Make a location a parameter, or hold it where it is: no part of the state then.

        Loading a state with free locations into a guide without them is refused by torch.
        """
        if neutral:
            self.register_buffer(name, value, persistent=False)
        else:
            setattr(self, name, nn.Parameter(value))
