"""What the plots share: colours, markers, axes and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyronorm.display import checked_axes
from pyronorm.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MARKERS",
    "color",
    "layer_ticks",
    "legend_outside",
    "refuse_nothing",
    "two_axes",
]

MARKERS = "osD^v<>Phd"


def color(position: int) -> Any:
    """Ten strong colours, then the ten pale ones beside them."""
    import matplotlib as mpl

    palette = mpl.color_sequences["tab20"]
    return palette[(2 * position) % 20 + (position // 10) % 2]


def layer_ticks(ax: Axes, layers: list[str]) -> None:
    """Name the layers along the x axis, and separate them."""
    for boundary in range(1, len(layers)):
        ax.axvline(boundary - 0.5, color="0.9", linewidth=1, zorder=0)
    upright = len(layers) >= 8 or sum(map(len, layers)) > 60
    ax.set_xticks(range(len(layers)), layers, rotation=90 if upright else 0)
    ax.set_xlabel("layer")


def legend_outside(ax: Axes) -> Axes:
    """Put the legend to the right of the axes."""
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    return ax


def refuse_nothing(where: str, labelled: Mapping[str, Any]) -> None:
    """Refuse to draw an empty plot.

    Args:
        where: the function that was called.
        labelled: what to draw, by label.

    Raises:
        OptionError: if there is nothing.
    """
    if not labelled:
        raise OptionError(f"{where}: there is nothing to draw; give a dictionary {{label: ...}}.")


def two_axes(axes: Sequence[Axes] | None) -> Sequence[Axes]:
    """The two axes given, or those of a new figure.

    Raises:
        OptionError: if there are not two.
    """
    if axes is not None:
        if not hasattr(axes, "__len__"):
            raise OptionError(f"plots: axes must be a pair of Axes, got {axes!r}.")
        if len(axes) != 2:
            raise OptionError(f"plots: this one needs two axes, got {len(axes)}.")
        return [checked_axes(ax) for ax in axes]
    import matplotlib.pyplot as plt

    left, right = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")[1]
    return left, right
