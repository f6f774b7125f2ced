"""A normalizing flow over all shifts and log scales."""

from __future__ import annotations

import math

import torch
from pyro import distributions as dist
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import nn
from torch.distributions.transforms import AffineTransform

from pyronorm.checks import Count, Positive, checked
from pyronorm.devices import check_memory
from pyronorm.errors import OptionError
from pyronorm.guides.base import TOO_MANY, Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.model import NormalizationModel

__all__ = ["Flow"]


class Flow(Guide):
    r"""An inverse autoregressive flow over all shifts and log scales, across channels and layers.

    .. math::
        (\text{shift}, \log\text{scale}) = m + s \odot (f_L \circ \dots \circ f_1)(e), \qquad
        e \sim \mathcal N(0, I), \qquad
        f(e)_i = \mu_i(e_{<i}) + \sigma_i(e_{<i})\, e_i

    with :math:`\mu` and :math:`\log \sigma` from a masked network of one hidden layer. Unlike the
    Gaussian guides it can be skewed and bent. A draw and its density cost one pass of each masked
    network; the density of *given* values costs ``2 * channel`` passes (and
    Pyro's inversion works in float32 only). The networks have about
    ``6 * channel * hidden`` weights each: for small and middling networks.

    Parameters: ``loc`` (m) and ``log_std`` (log s), shape ``(2 * channel,)``, shifts first; ``flows``,
    the masked networks. They start with zeros in their last layer, so the guide starts as a Gaussian
    with independent components. The KL divergence is estimated by sampling.

    Args:
        model: the model whose latents to sample.
        num_flows: ``L``; every second one runs through the components in reverse.
        hidden: width of the masked networks; None for ``2 * channel + 1``.
        init_std: initial standard deviation of every component.

    Sites: besides ``shift`` and ``scale`` an auxiliary site ``latents``, both in one vector, which
    carries the density.

    Raises:
        OptionError: if ``num_flows`` or ``init_std`` is not positive, or ``hidden`` is smaller than
            ``2 * channel``.
        SizeError: if there is no memory for so many latents.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, "Improving Variational Inference
    with Inverse Autoregressive Flow" (NeurIPS 2016); the masked networks are those of Pyro.
    """

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        num_flows: Count = 2,
        hidden: Count | None = None,
        init_std: Positive = 0.03,
    ) -> None:
        super().__init__(model)
        size = 2 * self.space.num_channels
        hidden = size + 1 if hidden is None else hidden
        if hidden < size:
            raise OptionError(
                f"guides.Flow: hidden must be at least {size}, the number of latents, got {hidden}."
            )
        like = self.like
        # Two masked layers, of weights and masks, (latents, hidden) and (hidden, 2 latents).
        numbers = 6 * num_flows * size * hidden
        check_memory(f"guides.Flow of {size:,} latents", numbers, like, TOO_MANY)
        self.num_flows, self.hidden, self.init_std = num_flows, hidden, init_std
        self.loc = nn.Parameter(like.new_zeros(size))
        self.log_std = nn.Parameter(like.new_full((size,), math.log(init_std)))
        networks = []
        for k in range(num_flows):
            order = torch.arange(size).flip(0) if k % 2 else torch.arange(size)
            network = AutoRegressiveNN(size, [hidden], permutation=order)  # type: ignore[arg-type]
            for parameter in network.layers[-1].parameters():
                nn.init.zeros_(parameter)
            networks.append(network)
        self.flows = nn.ModuleList(networks).to(like)

    def law(self) -> Law:
        """All latents jointly."""
        zeros, ones = torch.zeros_like(self.loc), torch.ones_like(self.loc)
        base = dist.Normal(zeros, ones, validate_args=False).to_event(1)
        # Every part remembers its last draw, or the density would invert the flow step by step.
        parts = [
            *(AffineAutoregressive(network) for network in self.flows),
            AffineTransform(self.loc, self.log_std.exp(), event_dim=1, cache_size=1),
        ]
        return Joint(dist.TransformedDistribution(base, parts))
