"""What a guide is."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import Enum
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.display import displayed
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.guides.hyper import HyperGuide
from pyronorm.guides.names import OwnParameters
from pyronorm.guides.spaces import refuse_other_space
from pyronorm.latents import Draws, HasLatents, LatentNetwork, LatentSpace
from pyronorm.latents.draws import check_draws
from pyronorm.laws import Hierarchical, Joint, Law, kl
from pyronorm.laws.law import quantiles_of
from pyronorm.model import NormalizationModel
from pyronorm.priors import Prior
from pyronorm.randomness import Seed, seeded
from pyronorm.settings import settings_in_words

__all__ = ["TOO_MANY", "Guide"]

TOO_MANY = (
    "Take a guide that grows with the channels alone: MeanField, Paired, LowRank of a low rank."
)
"""What to do where a guide of all pairs of latents is too large, for messages."""


@displayed
class Guide(AutoGuide):
    """A distribution of the latents of a network: an approximate posterior.

    A subclass says its law in :meth:`law`; the Pyro sites ``shift`` and ``scale``, draws and densities
    follow from that. A guide works wherever Pyro takes a guide, is an ``AutoGuide`` (a part of an
    ``AutoGuideList``, say), and is a posterior for
    :func:`pyronorm.predict` and the rest. Of the model it keeps what it needs, the latent space, and
    follows its number of draws per mini-batch. Where the model's prior has hyperparameters, a guide
    with a density has a log-normal factor for them, ``hyper`` (:class:`~pyronorm.guides.HyperGuide`),
    independent of the latents.

    In Pyro's parameter store the parameters have the name of the class and the prefix of the network
    in front, ``MeanField.shift_loc``, unless the guide is a part of another PyroModule, which names it.

    Args:
        model: the model whose latents to sample; for a Pyro model of your own the
            :class:`~pyronorm.LatentNetwork` in it.

    Attributes:
        space: the space of the latents.
    """

    has_density: ClassVar[bool] = True
    """Whether the log density exists, or an ELBO without it; else the guide cannot be trained."""

    has_analytic_kl: ClassVar[bool] = False
    """Whether ``TraceMeanField_ELBO`` finds closed forms for the KL divergence to most priors."""

    needs_latents: ClassVar[bool] = True
    """Whether it is of no use for a plain network."""

    is_point: ClassVar[bool] = False
    """Whether all draws are equal, so that one is enough."""

    _like: Tensor

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__(None)  # type: ignore[no-untyped-call]  # the model is not kept
        self._pyro_name = f"{model.space.prefix}{type(self).__name__}"
        network = _network(model)
        if self.needs_latents:
            network.refuse_plain(type(self).__name__)
        self.space: LatentSpace = network.space
        # Empty: it gives device and dtype, and moves with the guide.
        self.register_buffer("_like", network.like, persistent=False)
        self._plate: Callable[[], AbstractContextManager[None]] = nullcontext
        self._reading = False
        self._weights = 0  # a hash of the weights that it belongs to; 0 for none
        self.hyper: HyperGuide | None = None
        if isinstance(model, NormalizationModel):
            self._plate = model.draw_plate
            if self.has_density and model.prior.law(self.space, self.like).hyper:
                self.hyper = HyperGuide(model.prior, self.space, self.like)

    @property
    def like(self) -> Tensor:
        """An empty tensor with the device and dtype that the latents have."""
        return self._like.to(torch.promote_types(self._like.dtype, torch.float32))

    @abstractmethod
    def law(self) -> Law:
        """The law of the latents with the parameters as they are now.

        Returns:
            A law of ``self.space.num_channels`` channels, such as ``Independent(shift, scale)`` of two
            Pyro distributions with event shape ``(channel,)``.
        """

    def law_key(self) -> Hashable:
        """What the law follows from where nothing is learned, such as a prior; None as a rule."""
        return None

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the sites; arguments are those of the model and are not used.

        Returns:
            The values by site name, with the plates around the call in front.

        Raises:
            OptionError: if Pyro's parameter store holds parameters of a file by the guide's names.
        """
        with OwnParameters(self._reading), self._plate():
            return self.whole_law().sample(self.space)

    @torch.no_grad()
    @checked
    def draw(
        self, model: HasLatents, num_samples: Count, *, data: Any = None, seed: Seed = None
    ) -> Draws:
        """Draw latents and hyperparameters, without Pyro.

        Args:
            model: the model that the guide approximates the posterior of.
            num_samples: number of independent draws.
            data: not used.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            The draws, with their log density where there is one.

        Raises:
            OptionError: if ``num_samples`` is below 1.
            ShapeError: if it is a guide for another network.
            StatisticsError: if it belongs to other weights than the network has.
            SizeError: if there is no memory for so many draws.
        """
        self.check(model.space)
        self.check_weights(model)
        check_draws(type(self).__name__, 1 if self.is_point else num_samples, self.space, self.like)
        with seeded(seed, self.like):
            draws = self.whole_law().draw(num_samples).to(model.network.like)
        return replace(draws, weights=self._weights) if self._weights else draws

    @checked
    def log_prob(
        self, shift: Tensor, scale: Tensor, hyper: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Log density in nats of latents, and of hyperparameters where the guide has some.

        Args:
            shift: packed shifts, shape ``(*sample, channel)``.
            scale: packed scales, of the same shape.
            hyper: values of the hyperparameters by site name, each of shape ``(*sample, group)``.

        Raises:
            NoDensityError: if the guide has none: a point, or the rows of a bank.
        """
        return self.whole_law().log_prob(shift, scale, hyper)

    @checked
    def kl(self, prior: Prior, num_samples: Count | None = None, *, seed: Seed = None) -> Tensor:
        r"""The divergence :math:`\mathrm{KL}(q \| p)` from this guide to a prior, in nats.

        Args:
            prior: ``p``; of an improper one, up to a constant.
            num_samples: draws to estimate it by where there is no closed form; None refuses to.
            seed: for these, see :func:`pyronorm.randomness.seeded`.

        Returns:
            A scalar, differentiable in the guide's parameters.

        Raises:
            OptionError: if there is no closed form and ``num_samples`` is None, or if the guide has
                no factor for the prior's hyperparameters.
            NoDensityError: if the guide has no density.
        """
        with seeded(seed, self.like):
            return kl(self.whole_law(), prior.law(self.space, self.like), num_samples)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Medians of single latents and hyperparameters, as Pyro's autoguides have it.

        Returns:
            Vectors by site name.

        Raises:
            OptionError: if they have no closed form.
        """
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    @torch.no_grad()
    @checked
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of single latents and hyperparameters, as Pyro's autoguides have it.

        Args:
            quantiles: levels between 0 and 1.
            args: those of the model; not used.
            kwargs: those of the model; not used.

        Returns:
            By site name, shape ``(level, channel)``.

        Raises:
            OptionError: if they have no closed form.
        """
        q = torch.as_tensor(quantiles, dtype=self.like.dtype, device=self.like.device)
        shift, scale = self.law().quantiles(q)
        known = {} if self.hyper is None else self.hyper.distributions()
        hyper = {name: quantiles_of(fn, q) for name, fn in known.items()}
        return {**hyper, self.space.shift_site: shift, self.space.scale_site: scale}

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        r"""The distribution of all latents in one vector :math:`[\text{shift}, \log\text{scale}]`.

        Raises:
            OptionError: if the guide is not of that form.
        """
        law = self.law()
        if not isinstance(law, Joint):
            raise OptionError(
                f"{type(self).__name__} is not one distribution of a vector, but of two sites: "
                "guide.law() has their distributions, guide.draw(model, 1000) their draws."
            )
        return law.latents

    def settings(self) -> dict[str, Any]:
        """What makes a fresh guide that takes this one's state; ready for JSON.

        ``type(guide).from_settings(model, guide.settings())`` and then ``load_state_dict``. As a rule
        these are the arguments of the constructor without ``model``, read off attributes of the same
        names.

        Raises:
            OptionError: if a guide of your own does not keep an argument, or one of another kind.
        """
        names = [*inspect.signature(type(self).__init__).parameters][2:]
        return {name: self._setting(name) for name in names}

    def extra_repr(self) -> str:
        """Show the settings, where they are kept, and the number of channels."""
        settings = settings_in_words(self._content())
        return f"{settings}{', ' if settings else ''}{self.space.num_channels} channels"

    def _content(self) -> dict[str, Any]:
        try:
            return self.settings()
        except OptionError:
            return {}

    @classmethod
    def from_settings(cls, model: NormalizationModel, settings: Mapping[str, Any]) -> Guide:
        """A fresh guide of these settings, whose state is still to be loaded.

        Args:
            model: the model whose latents to sample.
            settings: from :meth:`settings` of a guide of this class.
        """
        return cls(model, **settings)

    def read_param_store(self) -> None:
        """Take the values of Pyro's parameter store, such as ``load`` has put there.

        Afterwards the store holds this guide's own parameters. What it does not have stays.

        Raises:
            ShapeError: if a parameter there has another shape.
        """
        self._reading = True
        try:
            with torch.no_grad(), poutine.block():
                self()
        finally:
            self._reading = False

    def check(self, space: LatentSpace) -> None:
        """Refuse the space of another network.

        Raises:
            ShapeError: if layers or channels differ.
        """
        refuse_other_space(type(self).__name__, self.space, space)

    def stamp(self, model: HasLatents | LatentNetwork | None) -> None:
        """Declare that the guide belongs to the weights that the network has now.

        :func:`pyronorm.fit` does it for guides that it has trained, and guides made from a bank are
        stamped; the stamp is a part of the state. Laws that nothing was learned for, such as
        :class:`~pyronorm.guides.BatchNoise`, belong to no weights.

        Args:
            model: the model; None for no weights in particular.
        """
        weights = 0 if model is None else _network(model).weights()
        if weights != self._weights:
            self._weights = weights

    def check_weights(self, model: HasLatents | LatentNetwork) -> None:
        """Refuse a network with other weights than the guide belongs to.

        Raises:
            StatisticsError: saying what to do.
        """
        if self._weights and self._weights != _network(model).weights():
            raise StatisticsError(
                f"{type(self).__name__}: the guide belongs to other weights than the network has, so "
                "its latents are relative to other statistics. Train it for these weights, or collect "
                "the bank that it is from again; if it is right as it is, call guide.stamp(model)."
            )

    def get_extra_state(self) -> Tensor:
        """The weights that the guide belongs to: a hash of them."""
        return torch.tensor(self._weights)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the weights of a state."""
        self._weights = int(state)

    def samples_law(self, model: NormalizationModel) -> bool:
        """Whether in a model's plates its sites are those of the law and nothing else.

        Args:
            model: the model; a guide made for a LatentNetwork does not follow its draws.
        """
        follows = model.draws == 1 or self._plate == model.draw_plate
        return follows and type(self).forward is Guide.forward

    def whole_law(self) -> Law:
        """The law, with the factor for the prior's hyperparameters."""
        law = self.law()
        if self.hyper is None:
            return law
        return Hierarchical(self.hyper.distributions(), lambda _: law, law.has_density)

    def _setting(self, name: str) -> Any:
        value = getattr(self, name, self)
        value = value.value if isinstance(value, Enum) else value
        value = value.tolist() if isinstance(value, Tensor) else value
        if not isinstance(value, (bool, int, float, str, list, dict, type(None))):
            raise OptionError(
                f"{type(self).__name__}: its argument {name!r} cannot be saved; keep it as an attribute "
                f"of that name, a number or a string, or define settings() and from_settings()."
            )
        return value

    def _vector(self, value: float | Sequence[float] | Tensor, name: str) -> Tensor:
        """A number for every channel, or a given vector, as a fresh tensor."""
        channels = self.space.num_channels
        like = self.like
        vector = torch.as_tensor(value, device=like.device, dtype=like.dtype)
        if vector.shape not in ((), (channels,)):
            raise ShapeError(
                f"{type(self).__name__}: {name} must be a number or have shape ({channels},), got "
                f"{tuple(vector.shape)}."
            )
        return vector.expand(channels).clone()

    def _add_location(self, name: str, value: Tensor, neutral: bool) -> None:
        """Make a location a parameter, or hold it where it is: no part of the state then.

        Loading a state with free locations into a guide without them is refused by torch.
        """
        if neutral:
            self.register_buffer(name, value, persistent=False)
        else:
            setattr(self, name, nn.Parameter(value))


def _network(model: HasLatents | LatentNetwork) -> LatentNetwork:
    return model if isinstance(model, LatentNetwork) else model.network
