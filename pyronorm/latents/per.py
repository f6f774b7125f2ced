"""Which channels share a number."""

from __future__ import annotations

from enum import Enum

import torch
from jaxtyping import Int
from torch import Tensor

from pyronorm.errors import OptionError
from pyronorm.latents.space import LatentSpace

__all__ = ["Per"]


class Per(Enum):
    """What has a number of its own: the network, each layer, or each channel.

    Example:
        >>> from pyronorm.latents import LatentLayer
        >>> space = LatentSpace((LatentLayer("bn1", 2, "Batch"), LatentLayer("bn2", 1, "Batch")))
        >>> Per.LAYER.groups(space), Per.LAYER.labels(space)
        (tensor([0, 0, 1]), ('bn1', 'bn2'))
    """

    NETWORK = "network"
    LAYER = "layer"
    CHANNEL = "channel"

    @classmethod
    def of(cls, value: Per | str) -> Per:
        """The member itself, or the one of that value.

        Raises:
            OptionError: if there is none.
        """
        try:
            return cls(value)
        except ValueError:
            choices = ", ".join(repr(member.value) for member in cls)
            raise OptionError(f"per: expected one of {choices}, got {value!r}.") from None

    def groups(self, space: LatentSpace) -> Int[Tensor, " channel"]:
        """For each channel the number of its group, from 0 without gaps.

        Args:
            space: the layers and channels of a network.
        """
        if self is Per.NETWORK:
            return torch.zeros(space.num_channels, dtype=torch.long)
        if self is Per.CHANNEL:
            return torch.arange(space.num_channels)
        return torch.repeat_interleave(torch.tensor(space.sizes))

    def labels(self, space: LatentSpace) -> tuple[str, ...]:
        """A label for each group.

        Args:
            space: the layers and channels of a network.
        """
        if self is Per.NETWORK:
            return ("network",)
        return space.names if self is Per.LAYER else space.channel_labels
