"""Hand latents to single layers, without a LatentNetwork."""

from __future__ import annotations

from torch import Tensor

from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.handover import handed_over

_present: dict[LatentNorm, tuple[Tensor, Tensor]] = {}
_contexts: list[handed_over] = []


def give(layer: LatentNorm, latents: tuple[Tensor, Tensor] | None) -> None:
    """The layer has these latents until it gets others, or the test ends."""
    _leave()
    _present.pop(layer, None)
    if latents is not None:
        _present[layer] = latents
    context = handed_over(dict(_present))
    context.__enter__()
    _contexts.append(context)


def take_all() -> None:
    """No layer has latents any more."""
    _leave()
    _present.clear()


def _leave() -> None:
    while _contexts:
        _contexts.pop().__exit__(None, None, None)
