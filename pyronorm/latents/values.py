"""Values of the latents: scales are above 0, and all are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.errors import DataError

__all__ = ["check_values"]


def check_values(where: str, shift: Tensor, scale: Tensor) -> None:
    """Refuse latents that are not finite, and scales that are not above 0.

    Values on a GPU are not looked at, since that would wait for it; nor those of a traced call.

    Args:
        where: what they are for.
        shift: shifts of any shape.
        scale: scales.

    Raises:
        DataError: saying how many are impossible.
    """
    if scale.device.type != "cpu" or torch.compiler.is_compiling():
        return
    good = {"shift": shift.isfinite(), "scale": scale.isfinite() & (scale > 0)}
    for name, of in good.items():
        try:
            fine = bool(of.all())
        except RuntimeError:  # inside of torch.func.vmap
            return
        if not fine:
            rule = "finite" if name == "shift" else "finite and above 0"
            raise DataError(
                f"{where}: every {name} must be {rule}, but {int((~of).sum())} of {of.numel()} are not. "
                "Those of a guide say that its training diverged, or that its noise is too wide."
            )
