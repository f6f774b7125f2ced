"""Augmentation of a batch of images, on the device they are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Natural, check_fields, checked
from pyronorm.errors import OptionError, ShapeError

__all__ = ["PadCropFlip"]


@dataclass(frozen=True)
class PadCropFlip:
    """Shift each image at random by up to ``padding`` pixels, and mirror half of them.

    The image is padded with zeros on all sides and cut to its size again at a place that is uniform
    over the ``(2 * padding + 1)**2`` ones; then it is mirrored left to right with probability 1/2. On
    standardized images, zero is the mean. For the option ``augment`` of :func:`pyronorm.fit`.

    Args:
        padding: pixels of padding on each side.
        flip: whether to mirror.
        generator: source of randomness, on the images' device; None for torch's own there.

    Raises:
        OptionError: if the padding is negative, or if there is nothing to do.

    Source: He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, 4.2.
    """

    padding: Natural = 4
    flip: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.padding or self.flip):
            raise OptionError(
                "PadCropFlip: padding must not be negative, nor zero without flip, got "
                f"{self.padding}."
            )

    def __call__(
        self, x: Float[Tensor, "batch channel height width"], y: Tensor
    ) -> tuple[Float[Tensor, "batch channel height width"], Tensor]:
        """Augment the images of a batch, and return the targets as they are.

        Raises:
            ShapeError: if the batch is not of images.
            OptionError: if the generator is on another device.
        """
        return self.images(x), y

    @checked
    def images(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Augment images; a new tensor, in the same memory format.

        Raises:
            ShapeError: if the batch is not of images.
            OptionError: if the generator is on another device.
        """
        if x.ndim != 4:
            raise ShapeError(
                f"PadCropFlip: expected (batch, channel, height, width), got {tuple(x.shape)}."
            )
        if self.generator is not None and self.generator.device != x.device:
            raise OptionError(
                f"PadCropFlip: the generator is on {self.generator.device}, the images on {x.device}."
            )
        batch, channels, height, width = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        across = torch.arange(width, device=x.device).expand(batch, width)
        if self.flip:
            flipped = self._random(x, 2)[:, None] == 1
            across = torch.where(flipped, width - 1 - across, across)
        down = torch.arange(height, device=x.device).expand(batch, height)
        if self.padding:
            x = nn.functional.pad(x, (self.padding,) * 4)
            across = across + self._random(x, 2 * self.padding + 1)[:, None]
            down = down + self._random(x, 2 * self.padding + 1)[:, None]
        example = torch.arange(batch, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[:, None, None]
        x = x[example, channel, down[:, None, :, None], across[:, None, None, :]]
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def _random(self, x: Tensor, choices: int) -> Tensor:
        return torch.randint(choices, (len(x),), generator=self.generator, device=x.device)
