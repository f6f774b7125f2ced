"""Sites that a network samples itself, such as weights with a prior of their own."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.infer.modes import evaluation_mode
from pyronorm.inputs import tensors_of
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.randomness import seeded

__all__ = [
    "check_own_sites",
    "draw_own_sites",
    "given_own_sites",
    "own_log_prior",
    "refuse_likelihood_sites",
    "run_with_own_sites",
    "watched_own_sites",
]


def run_with_own_sites(
    network: LatentNetwork, x: Any, shift: Tensor, scale: Tensor, others: Mapping[str, Tensor]
) -> Tensor:
    """Evaluate a network for many draws, its own sites among them.

    Args:
        network: the network, in the mode it is to run in.
        x: inputs.
        shift: shape ``(sample, 1, channel)``.
        scale: of the same shape.
        others: values of the network's own sites, each ``(sample, *site)``.

    Returns:
        Shape ``(sample, batch, *out)``.
    """
    if not others:
        return network(x, shift, scale)  # type: ignore[no-any-return]
    outputs = []
    for sample in range(len(shift)):
        with given_own_sites(others, sample):
            outputs.append(network(x, shift[sample], scale[sample]))
    return torch.stack(outputs)


@contextmanager
def given_own_sites(others: Mapping[str, Tensor], sample: int) -> Iterator[None]:
    """Context in which a network's own sites have the values of a draw."""
    # one thread at a time, as Pyro has one stack of handlers for all of them
    with (
        seeded(None),
        poutine.condition(data={name: value[sample] for name, value in others.items()}),
    ):
        yield


def check_own_sites(
    model: NormalizationModel, x: Any, shift: Tensor, scale: Tensor, others: Mapping[str, Tensor]
) -> int:
    """Refuse draws that lack values of sites that the network samples: they would be from the prior.

    A network that samples nothing is asked once for inputs of a kind.

    Args:
        model: the model.
        x: one example, on the network's device.
        shift: one draw, shape ``(1, 1, channel)``.
        scale: of the same shape.
        others: the values there are, each ``(sample, *site)``.

    Returns:
        How many numbers the network's output for the example has.

    Raises:
        OptionError: if values are missing, or of sites that the network does not have.
        ShapeError: if a value has another shape than its site.
    """
    network = model.network
    refuse_likelihood_sites(model)
    modules = tuple(network.modules())
    samples = others or any(isinstance(module, PyroModule) for module in modules)
    kinds = ((name, t.dtype, t.shape, t.device) for name, t in tensors_of(x).items())
    key = (tuple(map(id, modules)), *kinds)
    known = _SAMPLE_NOTHING.get(network)
    if known is not None and known[0] == key and not samples:
        return known[1]
    # What is drawn here counts for nothing.
    with (
        seeded(0 if samples else None, network.like),
        evaluation_mode(model),
        poutine.trace() as tracer,
    ):
        output: Tensor = network(x, shift, scale)
    sites = _sampled(tracer.trace)
    missing = [name for name in sites if name not in others]
    if missing:
        raise OptionError(
            f"the network samples {missing} in its forward pass, and the posterior has no values for "
            "them: pyronorm would predict with draws from their prior. Use a posterior of all sites, "
            "such as pyro.infer.autoguide.AutoNormal(model), or an AutoGuideList of a guide of "
            "pyronorm.guides and one for the rest."
        )
    unknown = [name for name in others if name not in sites]
    if unknown:
        raise OptionError(
            f"the posterior has values for {unknown}, which the network does not sample: they would "
            f"have no effect. The network samples {list(sites)} besides its latents."
        )
    for name, value in others.items():
        shape = tuple(sites[name]["fn"].batch_shape + sites[name]["fn"].event_shape)
        if tuple(value.shape[1:]) != shape:
            raise ShapeError(
                f"the posterior's site {name!r} has shape {tuple(value.shape[1:])}, but for one example "
                f"the network's has {shape}. Values that belong to single examples cannot be replayed "
                "for others: only sites that all examples share can."
            )
    if not sites:
        _SAMPLE_NOTHING[network] = key, output.numel()
    return output.numel()


# Networks that were found to sample nothing: when, and how many numbers an example's output has.
_SAMPLE_NOTHING: WeakKeyDictionary[LatentNetwork, tuple[Hashable, int]] = WeakKeyDictionary()


def refuse_likelihood_sites(model: NormalizationModel) -> None:
    """Refuse a likelihood with Pyro sites of its own, which prediction would draw from their prior."""
    for module in model.likelihood.modules():
        if isinstance(module, PyroModule) and module._pyro_samples:
            raise OptionError(
                f"{type(model.likelihood).__name__} has Pyro sites of its own, "
                f"{list(module._pyro_samples)}: pyronorm would predict with these drawn from their "
                "prior. Make them parameters, write a Pyro model of your own with "
                "pyronorm.sample_latents, or use pyro.infer.Predictive(model, guide=guide)."
            )


@torch.no_grad()
def own_log_prior(model: NormalizationModel, x: Any, draws: Draws) -> Tensor:
    """Log prior density of the network's own sites for every draw, in nats, shape ``(sample,)``.

    Args:
        model: the model.
        x: one example; the sites do not depend on it.
        draws: the draws.
    """
    draws = draws.to(model.network.like)
    found = draws.shift.new_zeros(len(draws))
    with evaluation_mode(model):
        for sample in range(len(draws)):
            with given_own_sites(draws.others, sample), poutine.trace() as tracer:
                model.network(x, draws.shift[sample], draws.scale[sample])
            for site in _sampled(tracer.trace).values():
                found[sample] += site["fn"].log_prob(site["value"]).sum()
    return found


@torch.no_grad()
def draw_own_sites(model: NormalizationModel, x: Any, num_samples: int) -> dict[str, Tensor]:
    """Draw the network's own sites from their prior.

    Args:
        model: the model.
        x: one example.
        num_samples: number of draws.

    Returns:
        By name, each of shape ``(sample, *site)``; empty where the network has none.
    """
    found: list[dict[str, Tensor]] = []
    with evaluation_mode(model):
        for _ in range(num_samples):
            with seeded(None), poutine.trace() as tracer:
                model.network(x)
            sites = _sampled(tracer.trace)
            if not sites:
                return {}
            found.append({name: site["value"] for name, site in sites.items()})
    return {name: torch.stack([values[name] for values in found]) for name in found[0]}


@contextmanager
def watched_own_sites(network: nn.Module, where: str) -> Iterator[OwnSitesSeen]:
    """Context in which it is noted what a network draws, if it has a PyroModule at all.

    Args:
        network: the network.
        where: the caller, for the message.
    """
    seen = OwnSitesSeen(where)
    if any(isinstance(module, PyroModule) for module in network.modules()):
        with seeded(None), seen:  # one thread at a time, as above
            yield seen
    else:
        yield seen


class OwnSitesSeen(Messenger):
    """Around a pass over data with batch statistics: notes the sites that a network draws.

    Statistics of a layer after such a site depend on the draw, which without a posterior is one from
    the prior.

    Args:
        where: the caller, for the message.
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where
        self._drawn: list[str] = []

    def start(self) -> None:
        """A new batch begins."""
        self._drawn.clear()

    def check(self, layer: str) -> None:
        """Refuse statistics of a layer that runs after a draw.

        Raises:
            StatisticsError: naming layer and sites.
        """
        if self._drawn:
            raise StatisticsError(
                f"{self._where}: {layer} runs after the network has drawn {self._drawn}, so its batch "
                "statistics depend on draws that are from the prior here. Give them values: with "
                "pyro.condition(data=guide.median()): ...; or put what has a prior of its own behind "
                "the batch normalization, or take a normalizer without batch statistics."
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            self._drawn.append(msg["name"])


def _is_given(site: Any) -> bool:
    """Whether its value follows from others."""
    return "_deterministic" in (site["infer"] or {})


def _sampled(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites of a network, without those of plates and deterministic ones."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not _is_given(site)
    }
