"""Copies of networks, whatever they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pyronorm.errors import ConversionError

__all__ = ["copied"]


def copied(network: nn.Module) -> nn.Module:
    """A deep copy of a network, each part in the mode of the original.

    Raises:
        ConversionError: naming what cannot be copied.
    """
    # Torch copies no tensor that was computed from parameters; these are computed anew at each call.
    memo = {id(value): value.detach().clone() for value in _recomputed(network)}
    try:
        new: nn.Module = copy.deepcopy(network, memo)
    except RuntimeError as error:
        for name, module in network.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    raise ConversionError(
                        f"convert: layer {name or '(the network itself)'!r} "
                        f"({type(module).__name__}) cannot be copied: its {key!r} is computed from "
                        "parameters and kept. Compute it in forward, or take it away before converting."
                    ) from error
        raise ConversionError(
            f"convert: {type(network).__name__} cannot be copied (copy.deepcopy): {error}"
        ) from error
    modes = {name: module.training for name, module in network.named_modules()}
    for name, module in new.named_modules():  # graphs of torch.fx lose it
        module.training = modes[name]
    return new


def _recomputed(network: nn.Module) -> Iterator[Tensor]:
    """What torch.nn.utils.weight_norm and spectral_norm leave in a layer from its last call."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                value = vars(module).get(hook.name)
                if isinstance(value, Tensor):
                    yield value
