"""All channels of all layers in one vector: names, order, packing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, check_fields, checked
from pyronorm.display import displayed
from pyronorm.errors import ConversionError, OptionError, ShapeError
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.words import plain_name

__all__ = ["LatentLayer", "LatentSpace"]


@dataclass(frozen=True)
class LatentLayer:
    """One normalized layer of a network.

    Attributes:
        name: the layer's name in ``network.named_modules()``.
        num_channels: its number of channels.
        normalizer: the name of its normalizer's class, e.g. ``"Batch"``.
    """

    name: str
    num_channels: Count
    normalizer: str


@displayed
@dataclass(frozen=True, repr=False)
class LatentSpace:
    r"""The normalized channels of a network in a fixed order.

    ``shift`` and ``scale`` are vectors of length :attr:`num_channels`, the channels of the first
    layer first. Two networks that were converted from the same one have the same space, whatever
    their normalizers, so posteriors can be carried from one to the other.

    Attributes:
        layers: the layers, in the order of ``network.named_modules()``; none in a plain network.
        prefix: put before the names of the Pyro sites, for models with several networks.

    Example:
        >>> space = LatentSpace((LatentLayer("bn1", 2, "Batch"), LatentLayer("bn2", 1, "Batch")))
        >>> space.channel_labels
        ('bn1[0]', 'bn1[1]', 'bn2[0]')
        >>> space.unpack(torch.tensor([1.0, 2.0, 3.0]))["bn1"]
        tensor([1., 2.])
    """

    layers: tuple[LatentLayer, ...]
    prefix: str = ""
    num_channels: Count = field(init=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise OptionError(f"LatentSpace: layer names must be unique, got {names}.")
        object.__setattr__(self, "num_channels", sum(x.num_channels for x in self.layers))

    @classmethod
    @checked
    def of(cls, network: nn.Module, prefix: str = "") -> LatentSpace:
        """Read the space off a converted network.

        Args:
            network: a module that holds :class:`~pyronorm.LatentNorm` layers.
            prefix: put before the names of the Pyro sites.

        Raises:
            ConversionError: if the network has no such layer.
        """
        layers = tuple(
            LatentLayer(
                plain_name(name) or module.name,
                module.num_channels,
                type(module.normalizer).__name__,
            )
            for name, module in network.named_modules()
            if isinstance(module, LatentNorm)
        )
        if not layers:
            raise ConversionError(
                f"{type(network).__name__} has no layer with latent statistics: convert it first, "
                "network = pyronorm.convert(network)."
            )
        return cls(layers, prefix)

    @property
    def shift_site(self) -> str:
        """Name of the Pyro site of the shifts."""
        return f"{self.prefix}shift"

    @property
    def scale_site(self) -> str:
        """Name of the Pyro site of the scales."""
        return f"{self.prefix}scale"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of channels of each layer."""
        return tuple(layer.num_channels for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each layer."""
        return tuple(layer.name for layer in self.layers)

    @property
    def channel_labels(self) -> tuple[str, ...]:
        """A label for each channel, ``layer1.0.bn1[3]``."""
        return tuple(f"{x.name}[{c}]" for x in self.layers for c in range(x.num_channels))

    @property
    def channel_layers(self) -> tuple[str, ...]:
        """For each channel the name of its layer."""
        return tuple(x.name for x in self.layers for _ in range(x.num_channels))

    @checked
    def unpack(self, vector: Float[Tensor, "*batch channel"]) -> dict[str, Tensor]:
        """Split a packed tensor into one of shape ``(*batch, num_channels)`` per layer.

        Args:
            vector: shape ``(*batch, channel)``, all channels of all layers.

        Raises:
            ShapeError: if the last axis has another length.
        """
        self.check(vector, "unpack")
        return dict(zip(self.names, vector.split(self.sizes, dim=-1), strict=True))

    @checked
    def pack(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*batch channel"]:
        """Join one tensor of shape ``(*batch, num_channels)`` per layer; inverse of :meth:`unpack`.

        Args:
            values: a tensor for every layer, by name.

        Raises:
            ShapeError: if a layer is missing or unknown, or has another number of channels.
        """
        if set(values) != set(self.names):
            raise ShapeError(
                f"LatentSpace.pack: expected the layers {list(self.names)}, got {list(values)}."
            )
        for layer in self.layers:
            if values[layer.name].shape[-1:] != (layer.num_channels,):
                raise ShapeError(
                    f"LatentSpace.pack: {layer.name} has {layer.num_channels} channels, got a tensor "
                    f"of shape {tuple(values[layer.name].shape)}."
                )
        return torch.cat([values[name] for name in self.names], dim=-1)

    def check(self, vector: Tensor, where: str) -> None:
        """Refuse a tensor whose last axis is not all channels of all layers.

        Raises:
            ShapeError: naming ``where``.
        """
        if vector.ndim < 1 or vector.shape[-1] != self.num_channels:
            raise ShapeError(
                f"{where}: expected {self.num_channels} channels on the last axis "
                f"({len(self.layers)} layers), got a tensor of shape {tuple(vector.shape)}."
            )
