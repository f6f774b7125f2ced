"""Guides and the latents that they were made for."""

from __future__ import annotations

from pyronorm.errors import ShapeError
from pyronorm.latents import LatentSpace

__all__ = ["refuse_other_space"]


def refuse_other_space(guide: str, mine: LatentSpace, theirs: LatentSpace) -> None:
    """Refuse a model whose layers or channels are not those that a guide was made for.

    Args:
        guide: its name, for the message.
        mine: the guide's latents.
        theirs: the model's.

    Raises:
        ShapeError: if they differ.
    """
    own, other = (dict(zip(s.names, s.sizes, strict=True)) for s in (mine, theirs))
    if own != other:
        raise ShapeError(
            f"{guide}: the guide was made for another network; it has the layers {own}, the model has "
            f"{other}."
        )
