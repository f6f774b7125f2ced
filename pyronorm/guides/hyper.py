"""The guides' factor for the hyperparameters of a prior."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.guides.names import OwnParameters
from pyronorm.latents import LatentSpace
from pyronorm.laws.law import log_normal
from pyronorm.priors import Prior

__all__ = ["HyperGuide"]

_POSITIVE = (constraints.positive, constraints.nonnegative)


class HyperGuide(PyroModule):
    r"""Independent log-normal hyperparameters, one factor for each of a prior's.

    .. math::
        q = \prod_g \mathcal N(\log h_g; m_g, s_g^2)

    The guides of this library hold one where the model's prior has hyperparameters, and sample it
    before the latents. In a Pyro model of your own, with a guide made from a
    :class:`~pyronorm.LatentNetwork`, call it in your guide.

    Parameters: ``loc`` (m) and ``log_std`` (log s), for each site of shape ``(group,)``, in the order
    of the sites. They start at the logarithm of the prior mean and with ``s`` = 0.1.

    Args:
        prior: the prior.
        space: the layers and channels, and the prefix of the sites.
        like: gives device and dtype.

    Raises:
        OptionError: if the prior has no hyperparameters, or some that may not be positive.
    """

    @checked
    def __init__(self, prior: Prior, space: LatentSpace, like: Tensor) -> None:
        super().__init__(name=f"{space.prefix}HyperGuide")
        hyperprior = prior.law(space, like).hyper
        if not hyperprior:
            raise OptionError(f"guides.HyperGuide: {prior} has no hyperparameters.")
        loc, log_std = [], []
        for site, fn in hyperprior.items():
            support = fn.support
            if getattr(support, "base_constraint", support) not in _POSITIVE:
                raise OptionError(
                    f"guides.HyperGuide: it is log-normal, for positive hyperparameters; {site!r} of "
                    f"{prior} has the support {support}. Use a Pyro autoguide."
                )
            loc.append(nn.Parameter(fn.mean.log().clone()))
            log_std.append(nn.Parameter(torch.full_like(loc[-1], math.log(0.1))))
        self.sites = tuple(hyperprior)
        self.loc = nn.ParameterList(loc)
        self.log_std = nn.ParameterList(log_std)

    def distributions(self) -> dict[str, Any]:
        """The log-normal distributions by site name, with the parameters as they are now."""
        return {
            site: log_normal(loc, log_std.exp())
            for site, loc, log_std in zip(self.sites, self.loc, self.log_std, strict=True)
        }

    def forward(self) -> dict[str, Tensor]:
        """Sample the sites.

        Returns:
            The values by site name, with the plates around the call in front.
        """
        with OwnParameters():
            return {site: pyro.sample(site, fn) for site, fn in self.distributions().items()}
