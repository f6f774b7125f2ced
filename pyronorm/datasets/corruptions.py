"""Common corruptions of small images, for judging predictions under shift."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pyronorm.checks import Natural, Range, checked
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.randomness import Seed, seed_value

__all__ = ["CORRUPTIONS", "corrupt"]

_Images = Float[Tensor, "batch channel height width"]
_Level = Annotated[int, Range("an integer from 0 to 5", 0, 5)]


class _Random:
    """A generator for each image, so that what happens to it does not depend on the others."""

    def __init__(self, seed: int, first: int, images: Tensor) -> None:
        self._like = images
        self._generators = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            )
            for i in range(first, first + len(images))
        ]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, ``(batch, *shape)``."""
        return self._draw(lambda g: torch.randn(shape, generator=g))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from 0 to 1, ``(batch, *shape)``."""
        return self._draw(lambda g: torch.rand(shape, generator=g))

    def counts(self, mean: Tensor) -> Tensor:
        """Poisson numbers, of the shape of their means."""
        means = iter(mean.cpu())
        return self._draw(lambda g: torch.poisson(next(means), generator=g))

    def _draw(self, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([one(generator) for generator in self._generators]).to(self._like)


def _gaussian_noise(x: Tensor, level: int, random: _Random) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.12, 0.18)[level] * random.normal(*x.shape[1:])


def _shot_noise(x: Tensor, level: int, random: _Random) -> Tensor:
    photons = (500, 250, 100, 50, 25)[level]
    return random.counts(x * photons) / photons


def _impulse_noise(x: Tensor, level: int, random: _Random) -> Tensor:
    share = (0.01, 0.02, 0.04, 0.07, 0.12)[level]
    u = random.uniform(*x.shape[1:])
    return torch.where(u < share, (u < share / 2).to(x), x)


def _defocus_blur(x: Tensor, level: int, random: _Random) -> Tensor:
    radius = (0.6, 0.9, 1.2, 1.7, 2.4)[level]
    reach = math.ceil(radius)
    # How much of each pixel the disk covers, on 8 x 8 points.
    points = (torch.arange(8 * (2 * reach + 1)) + 0.5) / 8 - reach - 0.5
    inside = (points[:, None].square() + points.square() <= radius**2).float()
    kernel = F.avg_pool2d(inside[None, None], 8).to(x)
    return _filter(x, kernel / kernel.sum())


def _glass_blur(x: Tensor, level: int, random: _Random) -> Tensor:
    """Every pixel is taken from one nearby; a little blur before and after."""
    reach, width = ((0.6, 0.4), (0.9, 0.4), (1.2, 0.45), (1.6, 0.5), (2.2, 0.55))[level]
    batch, channels, height, width_ = x.shape
    moved = (reach * (2 * random.uniform(2, height, width_) - 1)).round().long()
    down = (torch.arange(height, device=x.device)[:, None] + moved[:, 0]).clamp(0, height - 1)
    across = (torch.arange(width_, device=x.device) + moved[:, 1]).clamp(0, width_ - 1)
    place = (down * width_ + across).reshape(batch, 1, -1).expand(-1, channels, -1)
    blurred = _filter(x, _gaussian(width, x)).flatten(2)
    return _filter(blurred.gather(2, place).view_as(x), _gaussian(width, x))


def _motion_blur(x: Tensor, level: int, random: _Random) -> Tensor:
    length = (1.0, 1.5, 2.2, 3.0, 4.0)[level]  # standard deviation, pixels
    angle = math.pi / 2 * (random.uniform() - 0.5)
    blurred, total = torch.zeros_like(x), 0.0
    for step in torch.linspace(0, 2, 9).tolist():  # to one side, as an exposure that fades
        weight = math.exp(-(step**2) / 2)
        shift = torch.stack([angle.cos(), angle.sin()], 1) * step * length
        blurred += weight * _warp(x, _turn(torch.zeros_like(angle)), shift)
        total += weight
    return blurred / total


def _zoom_blur(x: Tensor, level: int, random: _Random) -> Tensor:
    most = (1.06, 1.12, 1.18, 1.25, 1.33)[level]
    none = torch.zeros(len(x), 2, device=x.device, dtype=x.dtype)
    one = torch.eye(2, device=x.device, dtype=x.dtype).expand(len(x), 2, 2)
    zooms = torch.linspace(1, most, 8).tolist()
    return torch.stack([_warp(x, one / zoom, none) for zoom in zooms]).mean(0)


def _snow(x: Tensor, level: int, random: _Random) -> Tensor:
    """Flakes that fall at an angle, over an image that is paler."""
    share, brightness, length = (
        *((0.02, 0.9, 0.6), (0.04, 0.85, 0.8), (0.06, 0.8, 1.0)),
        *((0.09, 0.75, 1.2), (0.13, 0.7, 1.4)),
    )[level]
    height, width = x.shape[2:]
    flakes = (random.uniform(1, height, width) < share).to(x) * random.uniform(1, height, width)
    angle = math.pi * (0.25 + 0.5 * random.uniform())  # downwards
    fallen = torch.zeros_like(flakes)
    for step in (-1.0, -0.5, 0.0, 0.5, 1.0):
        shift = torch.stack([angle.cos(), angle.sin()], 1) * step * length
        fallen = torch.maximum(fallen, _warp(flakes, _turn(torch.zeros_like(angle)), shift))
    return brightness * x + (1 - brightness) * (0.5 * x + 0.5) + fallen


def _fog(x: Tensor, level: int, random: _Random) -> Tensor:
    amount, decay = ((0.2, 3.0), (0.45, 2.7), (0.75, 2.4), (1.1, 2.0), (1.6, 1.75))[level]
    size = max(x.shape[2:])
    cloud = torch.zeros(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
    for octave in range(1, math.ceil(math.log2(size)) + 1):
        coarse = random.uniform(1, 2**octave + 1, 2**octave + 1)
        smooth = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True)
        cloud += smooth / decay**octave
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    cloud = (cloud - low) / (high - low)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * cloud) * brightest / (brightest + amount)


def _brightness(x: Tensor, level: int, random: _Random) -> Tensor:
    return x + (0.05, 0.1, 0.15, 0.22, 0.3)[level]


def _contrast(x: Tensor, level: int, random: _Random) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


def _elastic(x: Tensor, level: int, random: _Random) -> Tensor:
    """Displacements that vary smoothly, with so many pixels of root mean square."""
    amount = (0.4, 0.7, 1.0, 1.4, 1.9)[level]
    field = _filter(random.normal(2, *x.shape[2:]), _gaussian(0.08 * max(x.shape[2:]), x))
    field = amount * field / field.square().mean((1, 2, 3), keepdim=True).sqrt()
    return _sample(x, _grid(x) + field.movedim(1, -1))


def _pixelate(x: Tensor, level: int, random: _Random) -> Tensor:
    share = (0.8, 0.65, 0.5, 0.4, 0.3)[level]
    small = max(1, round(share * x.shape[2])), max(1, round(share * x.shape[3]))
    return F.interpolate(F.adaptive_avg_pool2d(x, small), x.shape[2:], mode="nearest-exact")


def _jpeg_compression(x: Tensor, level: int, random: _Random) -> Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise OptionError(
            "corrupt: jpeg_compression needs Pillow: pip install 'pyronorm[study]', or leave it out."
        ) from None
    quality = (80, 55, 35, 20, 10)[level]
    colors = x.shape[1] == 3
    pixels = (255 * x).round().to(torch.uint8).cpu()
    pictures = pixels.movedim(1, -1) if colors else pixels.flatten(0, 1)
    found = []
    for picture in pictures.numpy():
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG", quality=quality)
            found.append(torch.from_numpy(np.array(Image.open(file))))
    decoded = torch.stack(found)
    decoded = decoded.movedim(-1, 1) if colors else decoded.view_as(pixels)
    return decoded.to(x) / 255


def _rotation(x: Tensor, level: int, random: _Random) -> Tensor:
    degrees = (7.5, 15.0, 22.5, 30.0, 45.0)[level]
    angle = math.radians(degrees) * (2 * (random.uniform() < 0.5).to(x) - 1)
    return _warp(x, _turn(angle), torch.zeros(len(x), 2, device=x.device, dtype=x.dtype))


CORRUPTIONS: Mapping[str, Callable[[Tensor, int, _Random], Tensor]] = MappingProxyType(
    {
        "gaussian_noise": _gaussian_noise,
        "shot_noise": _shot_noise,
        "impulse_noise": _impulse_noise,
        "defocus_blur": _defocus_blur,
        "glass_blur": _glass_blur,
        "motion_blur": _motion_blur,
        "zoom_blur": _zoom_blur,
        "snow": _snow,
        "fog": _fog,
        "brightness": _brightness,
        "contrast": _contrast,
        "elastic_transform": _elastic,
        "pixelate": _pixelate,
        "jpeg_compression": _jpeg_compression,
        "rotation": _rotation,
    }
)
"""What :func:`corrupt` does to images, by name."""


@torch.no_grad()
@checked
def corrupt(
    images: Tensor, corruption: str, severity: _Level, *, seed: Seed = 0, first: Natural = 0
) -> Tensor:
    """Corrupt images as cameras, weather and storage do.

    Noise, blur, weather and digital artefacts of five severities, from hardly visible to hard to read.
    What happens to an image follows from the seed and its number alone: batches with their
    ``first`` give what all images at once do.

    Args:
        images: pixels from 0 to 1, or bytes; ``(batch, channel, height, width)``, 8 pixels a side at
            least. Strengths are made for 28 and 32 pixels.
        corruption: one of :data:`CORRUPTIONS`.
        severity: 1 to 5; 0 leaves the images as they are.
        seed: see :func:`pyronorm.randomness.seed_value`.
        first: number of the first image.

    Returns:
        New images of the same shape and type, from 0 to 1, or bytes.

    Raises:
        OptionError: for an unknown corruption, or where JPEG needs Pillow.
        ShapeError: if these are no images.
        DataError: if pixels are not from 0 to 1.

    Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations" (ICLR 2019).

    Departs from the paper: frost is left out, since it needs photographs, and rotation stands beside the
    others; the programs are our own and the strengths about those of their CIFAR-10-C, changed so that
    damage grows with severity. Brightness is added to all channels.
    """
    if corruption not in CORRUPTIONS:
        raise OptionError(
            f"corrupt: no corruption {corruption!r}; choose from {', '.join(CORRUPTIONS)}."
        )
    if images.ndim != 4 or min(images.shape[2:], default=0) < 8:
        raise ShapeError(
            "corrupt: expected images (batch, channel, height, width) of 8 pixels a side at least, got "
            f"{tuple(images.shape)}."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"corrupt: expected bytes or floating point numbers, got {images.dtype}.")
    is_bytes = images.dtype == torch.uint8
    x = images.float() / 255 if is_bytes else images
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError(
            f"corrupt: pixels must be from 0 to 1, got {float(x.min()):g} to {float(x.max()):g}. "
            "Corrupt images before they are standardized."
        )
    if severity == 0 or not len(x):
        return images.clone()
    random = _Random(seed_value(seed), first, x)
    found = CORRUPTIONS[corruption](x, severity - 1, random).clamp(0, 1)
    return (255 * found).round().to(torch.uint8) if is_bytes else found


def _gaussian(std: float, like: Tensor) -> Tensor:
    """A Gaussian kernel."""
    reach = math.ceil(3 * std)
    line = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * std**2)).to(like)
    kernel = line[:, None] * line
    return (kernel / kernel.sum())[None, None]


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel with one kernel; images are mirrored at their ends."""
    reach = kernel.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    channels = x.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def _grid(x: Tensor) -> Tensor:
    """The places of the pixels, ``(1, height, width, 2)``, across first, 0 in the middle."""
    height, width = x.shape[2:]
    down = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    across = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    return torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]


def _turn(angle: Tensor) -> Tensor:
    """Rotations, ``(batch, 2, 2)``."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _warp(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Every image where a linear map and a shift in pixels take its places from."""
    places = torch.einsum("bij,nhwj->bhwi", matrix, _grid(x)) + shift[:, None, None]
    return _sample(x, places)


def _sample(x: Tensor, places: Tensor) -> Tensor:
    """Values at places in pixels, between the pixels bilinear; the edge goes on outside."""
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device, dtype=x.dtype)
    return F.grid_sample(x, 2 * places / size, padding_mode="border", align_corners=False)
