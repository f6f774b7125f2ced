"""Do the population statistics belong to the weights as they are now?

Population statistics are estimated for one set of weights. Training on makes them stale, and a
network evaluated with stale statistics is silently wrong. So each layer that keeps them carries a
*stamp*: the hashes of all parameters of the network at the time of the estimate. A stamp is
compared with the present parameters before the statistics are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.errors import StatisticsError
from pyronorm.normalizers.base import LatentNorm

__all__ = [
    "batch_layers",
    "check_statistics",
    "invalidate_statistics",
    "stamp_statistics",
    "trust_statistics",
    "watch_loading",
]

_FIX = (
    "Call pyronorm.estimate_population_statistics(network, train_data); or, if they are right, "
    "pyronorm.trust_statistics(network)."
)


def batch_layers(network: nn.Module) -> list[LatentNorm]:
    """The layers whose statistics are taken over the batch in training mode."""
    return [m for m in network.modules() if isinstance(m, LatentNorm) and m.normalizer.uses_batch]


def stamp_statistics(network: nn.Module) -> None:
    """Declare that existing population statistics belong to the present parameters.

    Layers that never saw a batch (``num_batches_tracked`` is 0) have none, and stay without.

    Args:
        network: a converted network; only the stamps of its layers change.
    """
    hashes = frozenset(_hashes(network))
    for layer in batch_layers(network):
        known = int(layer.state("num_batches_tracked")) > 0
        layer.statistics_stamp = hashes if known else None


def trust_statistics(network: nn.Module) -> None:
    """Accept the population statistics as they are, even if nothing shows that they are current.

    For weights that were changed on purpose without making the statistics wrong (rounded to half
    precision, a new head behind the last batch normalization, statistics written by hand).

    Args:
        network: a converted network, a LatentNetwork or a NormalizationModel.
    """
    for layer in batch_layers(network):
        if int(layer.state("num_batches_tracked")) == 0:
            layer.state("num_batches_tracked").fill_(1)
    stamp_statistics(network)


def invalidate_statistics(network: nn.Module) -> None:
    """Mark the population statistics as missing; a state dict saved from now on says so too."""
    for layer in batch_layers(network):
        layer.statistics_stamp = None
        layer.state("num_batches_tracked").zero_()


def check_statistics(network: nn.Module) -> None:
    """Refuse missing or stale population statistics.

    Args:
        network: a network with latent layers.

    Raises:
        StatisticsError: naming the first layer concerned, and what to do.
    """
    layers = batch_layers(network)
    missing = [layer.name for layer in layers if layer.statistics_stamp is None]
    if missing:
        raise StatisticsError(
            f"{missing[0]} has no population statistics for evaluation mode "
            f"({len(missing)} of {len(layers)} batch layers). {_FIX}"
        )
    if layers:
        hashes = _hashes(network)
        for layer in layers:
            assert layer.statistics_stamp is not None
            changed = sum(h not in layer.statistics_stamp for h in hashes)
            if changed:
                raise StatisticsError(
                    f"{layer.name}: the population statistics are stale, {changed} of "
                    f"{len(hashes)} parameter tensors have changed since they were estimated. "
                    f"{_FIX}"
                )


def watch_loading(network: nn.Module) -> None:
    """Renew the stamps whenever a state dict is loaded: statistics come with their weights."""
    if _after_loading not in network._load_state_dict_post_hooks.values():
        network.register_load_state_dict_post_hook(_after_loading)


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    stamp_statistics(module)


@torch.no_grad()
def _hashes(network: nn.Module) -> list[int]:
    """One integer per parameter tensor: exact, the same on every device and for exact casts."""
    sums: list[Tensor] = [
        parameter.double().view(torch.int64).sum() for parameter in network.parameters()
    ]
    if not sums:
        return []
    device = sums[0].device
    return [int(h) for h in torch.stack([s.to(device) for s in sums]).tolist()]
