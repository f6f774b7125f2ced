"""What a conversion has made of a network, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from pyronorm.checks import checked
from pyronorm.conversion.registry import class_name, normalization_layers
from pyronorm.display import displayed, frame
from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.words import plain_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ConversionReport", "LayerReport", "conversion_report"]


@dataclass(frozen=True)
class LayerReport:
    """One normalization layer of a network.

    Attributes:
        layer: its name in ``network.named_modules()``, without the wrappers of ``torch.compile``.
        original: the class it was converted from, e.g. ``"BatchNorm2d"``; of an unconverted layer
            the class it is; of a :class:`~pyronorm.LatentNorm` that was made by hand, that.
        normalizer: the class of the normalizer, e.g. ``"Batch"``; None if not converted.
        channels: number of channels, each with a ``shift`` and a ``scale``; None if not converted.
        statistics: where the reference statistics come from, in words.
    """

    layer: str
    original: str
    normalizer: str | None
    channels: int | None
    statistics: str


@displayed
@dataclass(frozen=True, repr=False)
class ConversionReport:
    """The normalization layers of a converted network.

    ``print(report)`` shows a table.

    Attributes:
        converted: layers with latents, in the order of the latent space.
        unconverted: normalization layers that were left as they are.
    """

    converted: tuple[LayerReport, ...]
    unconverted: tuple[LayerReport, ...] = ()

    @property
    def num_layers(self) -> int:
        """Number of layers with latents."""
        return len(self.converted)

    @property
    def num_channels(self) -> int:
        """Number of channels with latents: the length of ``shift`` and of ``scale``."""
        return sum(row.channels or 0 for row in self.converted)

    def __str__(self) -> str:
        """An aligned table, a line for each layer, and totals."""
        header = ("layer", "original", "normalizer", "channels", "statistics")
        rows = [header, *map(_cells, (*self.converted, *self.unconverted))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [_line(row, widths) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(f"{_count(self.num_layers)}, {self.num_channels:,} channels")
        if self.unconverted:
            lines[-1] += f"; {_count(len(self.unconverted))} not converted"
        return "\n".join(lines)

    def __repr__(self) -> str:
        """How many layers, of which normalizers."""
        kinds = Counter(row.normalizer for row in self.converted)
        words = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        left = f", {len(self.unconverted)} not converted" if self.unconverted else ""
        return f"ConversionReport({words}{left}, {self.num_channels:,} channels)"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = (*self.converted, *self.unconverted)
        return {f.name: [getattr(row, f.name) for row in rows] for f in fields(LayerReport)}

    def to_dataframe(self) -> pd.DataFrame:
        """All layers as a table with the columns of :class:`LayerReport`, unconverted ones last.

        Returns:
            A row per layer; ``channels`` are nullable integers, missing in unconverted layers.

        Raises:
            ImportError: if pandas is not installed.
        """
        return frame(self._columns(), "ConversionReport").astype({"channels": "Int64"})


@checked
def conversion_report(network: nn.Module) -> ConversionReport:
    """Report which normalization layers of a network carry latents, and of which kind they are.

    Args:
        network: a converted network (:func:`pyronorm.convert`).

    Returns:
        The report, as the network is now: statistics that are estimated later are in a new report.

    Raises:
        ConversionError: if the network has no layer with latents.

    Example:
        >>> from pyronorm.conversion import convert
        >>> print(conversion_report(convert(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))))
        layer  original   normalizer  channels  statistics
        -----  ---------  ----------  --------  -------------
        1      LayerNorm  Layer              8  each position
        1 layer, 8 channels
    """
    rows = list(_rows(network))
    converted = tuple(row for row in rows if row.normalizer is not None)
    if not converted:
        raise ConversionError(
            f"conversion_report: {type(network).__name__} has no layer with latent statistics: "
            "convert it first, network = pyronorm.convert(network)."
        )
    return ConversionReport(converted, tuple(row for row in rows if row.normalizer is None))


def _rows(network: nn.Module) -> Iterator[LayerReport]:
    seen = set()
    for name, module in normalization_layers(network).items():
        if module in seen:
            continue  # registered at two places
        seen.add(module)
        if isinstance(module, LatentNorm):
            yield LayerReport(
                layer=plain_name(name) or module.name,
                original=module.original or type(module).__name__,
                normalizer=type(module.normalizer).__name__,
                channels=module.num_channels,
                statistics=module.normalizer.describe(module),
            )
        else:
            yield LayerReport(plain_name(name), class_name(module), None, None, "not converted")


def _cells(row: LayerReport) -> tuple[str, ...]:
    channels = "" if row.channels is None else f"{row.channels:,}"
    return row.layer, row.original, row.normalizer or "", channels, row.statistics


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    # Numbers to the right, words to the left.
    padded = [
        cell.rjust(width) if i == 3 else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _count(layers: int) -> str:
    return f"{layers:,} layer{'' if layers == 1 else 's'}"
