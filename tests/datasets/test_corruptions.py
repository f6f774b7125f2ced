"""Corruptions of images: range, determinism, growing damage, and known cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from pyronorm.datasets import CORRUPTIONS, corrupt
from pyronorm.errors import DataError, OptionError, ShapeError

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow"}
RANDOM |= {"fog", "elastic_transform", "rotation"}


def images(channels: int, size: int, number: int = 24) -> torch.Tensor:
    """Smooth shapes with edges, not square where the size allows."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(number, channels, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (size, size + 4), mode="bilinear", align_corners=False)
    return torch.where(smooth > 0.5, smooth, 0.2 * smooth)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_every_corruption(name: str, channels: int, size: int) -> None:
    x = images(channels, size)
    before = x.clone()
    damage = []
    for severity in range(6):
        found = corrupt(x, name, severity, seed=3)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        damage.append(float((found - x).square().mean()))
    assert torch.equal(x, before)
    assert damage[0] == 0
    assert all(a < b for a, b in itertools.pairwise(damage)), damage
    # Batches with their first numbers give what all at once do, and nothing else does.
    whole = corrupt(x, name, 3, seed=3)
    parts = torch.cat([corrupt(x[i : i + 10], name, 3, seed=3, first=i) for i in (0, 10, 20)])
    torch.testing.assert_close(parts, whole)
    alone = corrupt(x[5:6], name, 3, seed=3, first=5)
    torch.testing.assert_close(alone, whole[5:6])
    other = corrupt(x, name, 3, seed=4)
    assert torch.equal(other, whole) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_bytes_are_corrupted_as_numbers_are(name: str) -> None:
    pixels = (255 * images(3, 32, 4)).round().to(torch.uint8)
    found = corrupt(pixels, name, 2)
    assert found.dtype == torch.uint8
    expected = (255 * corrupt(pixels.float() / 255, name, 2)).round()
    assert int((found.float() - expected).abs().max()) <= 1
    assert torch.equal(corrupt(pixels, name, 0), pixels)


def test_noise_has_its_strength() -> None:
    x = torch.full((50, 1, 28, 28), 0.5)
    assert float(corrupt(x, "gaussian_noise", 2).std()) == pytest.approx(0.06, rel=0.02)
    shot = corrupt(x, "shot_noise", 3)
    assert float(shot.mean()) == pytest.approx(0.5, rel=0.01)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.5 / 100), rel=0.02)
    hit = corrupt(x, "impulse_noise", 5)
    assert float((hit != 0.5).float().mean()) == pytest.approx(0.12, rel=0.05)
    assert float((hit == 1).float().mean()) == pytest.approx(0.06, rel=0.1)


def test_blur_keeps_constants_and_the_sum_of_a_point() -> None:
    flat = torch.full((2, 1, 28, 28), 0.4)
    point = torch.zeros(1, 1, 29, 29)
    point[..., 14, 14] = 1
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        torch.testing.assert_close(corrupt(flat, name, 4), flat)
    for name in ("defocus_blur", "motion_blur"):
        assert float(corrupt(point, name, 4).sum()) == pytest.approx(1, abs=1e-4)
    # A disk is the same from all sides.
    blurred = corrupt(point, "defocus_blur", 4)
    torch.testing.assert_close(blurred, blurred.flip(2))
    torch.testing.assert_close(blurred, blurred.transpose(2, 3))


def test_rotation_moves_a_point_around_the_middle() -> None:
    point = torch.zeros(40, 1, 29, 29)
    point[..., 14, 24] = 1  # ten pixels to the right
    turned = corrupt(point, "rotation", 5)
    place = turned.flatten(1).argmax(1)
    reach = 10 * math.sqrt(0.5)
    seen = {(int(p) // 29 - 14, int(p) % 29 - 14) for p in place}
    expected = {(sign * round(reach), round(reach)) for sign in (-1, 1)}
    assert seen == expected


def test_brightness_contrast_and_pixels_by_hand() -> None:
    x = images(3, 32, 2)
    torch.testing.assert_close(corrupt(x, "brightness", 3), (x + 0.15).clamp(0, 1))
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(x, "contrast", 2), (x + mean) / 2)
    square = torch.rand(2, 1, 32, 32)
    halved = F.avg_pool2d(square, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(corrupt(square, "pixelate", 3), halved)


def test_what_is_refused() -> None:
    x = images(1, 28, 2)
    with pytest.raises(OptionError, match="no corruption 'frost'"):
        corrupt(x, "frost", 1)
    with pytest.raises(OptionError, match="from 0 to 5"):
        corrupt(x, "fog", 6)
    with pytest.raises(ShapeError, match="8 pixels"):
        corrupt(x[..., :4], "fog", 1)
    with pytest.raises(DataError, match="before they are standardized"):
        corrupt(x - 0.5, "fog", 1)
    with pytest.raises(DataError, match="bytes or floating"):
        corrupt(x.long(), "fog", 1)
