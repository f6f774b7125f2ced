"""What layers are called, and where their statistics come from, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyronorm.normalizers.base import LatentNorm

__all__ = ["plain_name", "population_in_words"]

# What torch.compile, activation checkpoints and sharding put between a module and its parent.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def plain_name(name: str) -> str:
    """The name of a module without those of the wrappers that torch puts around modules.

    Args:
        name: as in ``network.named_modules()``, e.g. ``"_orig_mod.layer1.bn"``.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def population_in_words(layer: LatentNorm) -> str:
    """How many batches the population statistics of a layer come from."""
    count = int(layer.state("num_batches_tracked"))
    if layer.unused:
        return "never ran, no population"
    if layer.statistics_stamp is None or count == 0:
        return "no population yet for evaluation"
    return f"population of {count:,} batch{'es' if count > 1 else ''} in evaluation"
