"""A mixture of several sets of latents, trained together."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from pyronorm.checks import Count, NotNegative, Positive, checked
from pyronorm.guides.base import Guide
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.model import NormalizationModel
from pyronorm.stats.batch_noise import check_batch_size, log_var_mean, log_var_variance

__all__ = ["Mixture"]


class Mixture(Guide):
    r"""Several centres of shift and scale, each with a spread around it.

    .. math::
        q = \frac1M \sum_{m=1}^M \prod_c \mathcal N(\text{shift}_c; a_{mc}, s_{mc}^2)\,
            \mathcal N(\log\text{scale}_c; b_{mc}, t_{mc}^2)

    One network with ``M`` sets of normalization statistics, trained together: an ensemble whose members
    share their weights. All channels are of one component. Components are balanced: of
    ``M`` draws that are made together each is of another one, from a random first one on, so every
    draw is one of the mixture and averages have less variance. With ``draws=M`` of the model
    each component has a share of every mini-batch; with batch normalizers, which take one draw per
    mini-batch, :func:`pyronorm.refresh_draws` gives each draw its own population statistics.

    Parameters, each of shape ``(component, 2 * channel)``, shifts first: ``loc`` (a, b) and
    ``log_std`` (log s, log t). The log density is exact; ELBOs estimate the KL divergence by
    sampling.

    Args:
        model: the model whose latents to sample.
        components: ``M``. One is :class:`~pyronorm.guides.MeanField`.
        init_std: initial ``s`` and ``t``.
        spread: standard deviation of the initial centres around the neutral values.
        batch_size: hold ``s`` and ``t`` at the noise of that batch size, by its moments; None learns
            them.

    Sites: besides ``shift`` and ``scale`` an auxiliary site ``latents``, both in one vector, which
    carries the density.

    Raises:
        OptionError: if a number is out of range.

    Source: Turkoglu, Becker, Gündüz, Rezaei, Bischl, Daudt, D'Aronco, Wegner & Schindler,
    "FiLM-Ensemble: Probabilistic Deep Learning via Feature-wise Linear Modulation" (NeurIPS 2022), for
    members that share all weights but the affine maps.

    Departs from the paper: members have widths and a prior, so that they are a posterior with a
    density; each example of a mini-batch is seen by one member instead of by all.
    """

    loc: nn.Parameter
    log_std: Tensor

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        components: Count = 4,
        init_std: Positive = 0.03,
        spread: NotNegative = 0.1,
        *,
        batch_size: float | None = None,
    ) -> None:
        super().__init__(model)
        self.components, self.init_std, self.spread = components, init_std, spread
        self.batch_size = batch_size
        channels = self.space.num_channels
        size = (components, 2 * channels)
        noise = torch.randn(size)
        loc = spread * (noise - noise.mean(0)).to(
            self.like
        )  # one component is at the neutral values
        log_std = self.like.new_full(size, math.log(init_std))
        if batch_size is not None:
            n = check_batch_size(batch_size, "guides.Mixture")
            loc[:, channels:] -= 0.5 * float(log_var_mean(n))
            log_std[:, :channels] = -0.5 * math.log(n)
            log_std[:, channels:] = math.log(0.5) + 0.5 * math.log(float(log_var_variance(n)))
        self.loc = nn.Parameter(loc)
        self._add_location("log_std", log_std, batch_size is not None)

    def law(self) -> Law:
        """All latents jointly."""
        return Joint(_Balanced(self.loc, self.log_std.exp()))

    @torch.no_grad()
    @checked
    def component(self, draws: Draws) -> Int[Tensor, " sample"]:
        """The component that each draw is most probably of.

        Args:
            draws: of this guide.

        Raises:
            ShapeError: if they are of another network.
        """
        self.space.check(draws.shift, "Mixture.component")
        latents = torch.cat([draws.shift, draws.scale.log()], -1).to(self.loc)
        return _Balanced(self.loc, self.log_std.exp()).by_component(latents).argmax(-1)


class _Balanced(TorchDistribution):
    """A mixture of diagonal normal distributions of equal weights, whose draws are balanced.

    Gradients are pathwise: the components' weights are constants, so that the choice of a component
    depends on no parameter.
    """

    arg_constraints: ClassVar[Any] = {}
    support: ClassVar[Any] = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, std: Tensor, batch_shape: Any = ()) -> None:
        self.loc, self.std = loc, std
        super().__init__(torch.Size(batch_shape), loc.shape[1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Balanced:
        """The same distribution, independently for each place of a batch."""
        return _Balanced(self.loc, self.std, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, the components one after the other from a random one on."""
        shape = torch.Size(sample_shape) + self.batch_shape
        number = len(self.loc)
        first = torch.randint(number, (), device=self.loc.device)
        place = torch.arange(shape.numel(), device=self.loc.device).view(shape)
        component = (first + place) % number
        noise = torch.randn(shape + self.event_shape, device=self.loc.device, dtype=self.loc.dtype)
        # not loc[component], which reads a single number on the host
        loc, std = (v.index_select(0, component.flatten()) for v in (self.loc, self.std))
        return (loc + std * noise.view_as(loc)).view(noise.shape)

    def by_component(self, value: Float[Tensor, "*sample latent"]) -> Tensor:
        """Log density under each component, ``(*sample, component)``."""
        fn = Normal(self.loc, self.std, validate_args=False)
        density: Tensor = fn.log_prob(value.unsqueeze(-2))
        return density.sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the mixture."""
        return self.by_component(value).logsumexp(-1) - math.log(len(self.loc))
