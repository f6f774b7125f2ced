"""Any prior as a guide, with nothing to learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Law
from pyronorm.model import NormalizationModel
from pyronorm.priors import Prior
from pyronorm.settings import class_named, lasting_name, name_of

__all__ = ["Fixed"]


class Fixed(Guide):
    """The law of a prior as a guide, with nothing to learn.

    Against the same prior the KL divergence is 0, so that the ELBO is the expected log likelihood
    under noise of that law; and its predictions are the prior's.

    Args:
        model: the model whose latents to sample.
        prior: any proper prior, as a rule another one than the model's. If it has hyperparameters,
            the model's prior has to have the same ones.

    Raises:
        OptionError: if ``prior`` is no prior, is improper, or has hyperparameters that the model's
            prior does not have.
    """

    has_analytic_kl: ClassVar[bool] = True

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork, prior: Prior) -> None:
        super().__init__(model)
        if not prior.is_proper:
            raise OptionError(f"guides.Fixed: {prior} is improper, it has no draws.")
        self.prior = prior
        own = set(prior.law(self.space, self.like).hyper)
        if own:
            theirs: set[str] = set()
            if isinstance(model, NormalizationModel):
                theirs = set(model.prior.law(self.space, self.like).hyper)
            if own != theirs:
                raise OptionError(
                    f"guides.Fixed: {prior} has the hyperparameters {sorted(own)}, the model's prior "
                    f"has {sorted(theirs)}."
                )
            self.hyper = None  # they are a part of the law

    def law_key(self) -> Prior | None:
        """The prior, if nothing in it can change."""
        return self.prior if self.prior.is_of_numbers else None

    def law(self) -> Law:
        """The law of the prior."""
        return self.prior.law(self.space, self.like)

    def settings(self) -> dict[str, Any]:
        """The prior's class and its settings.

        Raises:
            OptionError: if the class is defined inside of a function.
        """
        lasting_name(type(self.prior), "guides.Fixed")
        return self._content()

    def extra_repr(self) -> str:
        """Show the prior and the number of channels."""
        return f"{self.prior}, {self.space.num_channels} channels"

    @classmethod
    def from_settings(cls, model: NormalizationModel, settings: Mapping[str, Any]) -> Fixed:
        """A guide of these settings.

        Args:
            model: the model whose latents to sample.
            settings: from :meth:`settings`.

        Raises:
            OptionError: if the prior's class is not known: its module is not imported for that.
        """
        kind = class_named(settings["prior"]["class"], Prior, "guides.Fixed")
        return cls(model, kind(**settings["prior"]["settings"]))

    def get_extra_state(self) -> Tensor:
        """The settings, as bytes in a tensor."""
        return torch.tensor(
            list(json.dumps(self._content(), sort_keys=True).encode()), dtype=torch.uint8
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of another prior.

        Raises:
            OptionError: if it is of a guide with another prior.
        """
        theirs, mine = json.loads(bytes(state.tolist())), self._content()
        if theirs != mine:
            raise OptionError(
                f"guides.Fixed: the state is that of the prior {theirs['prior']}, this guide has "
                f"{mine['prior']}."
            )

    def _content(self) -> dict[str, Any]:
        return {"prior": {"class": name_of(type(self.prior)), "settings": self.prior.settings()}}
