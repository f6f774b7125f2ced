"""Pad, crop and flip against doing it image by image."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from pyronorm.datasets import PadCropFlip
from pyronorm.errors import OptionError, ShapeError


def variants(
    image: torch.Tensor, padding: int, flip: bool
) -> dict[tuple[int, int, bool], torch.Tensor]:
    """All results the augmentation can have, by slicing and torch's own flip."""
    _, height, width = image.shape
    padded = nn.functional.pad(image, (padding,) * 4)
    places = range(2 * padding + 1)
    return {
        (top, left, mirrored): crop.flip(-1) if mirrored else crop
        for top, left, mirrored in itertools.product(places, places, (False, True)[: 1 + flip])
        for crop in [padded[:, top : top + height, left : left + width]]
    }


@pytest.mark.parametrize(
    ("padding", "flip"), [(0, True), (1, False), (1, True), (2, False), (2, True)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_image_becomes_one_of_its_variants(padding, flip, memory_format):
    x = torch.rand(40, 2, 4, 5).to(memory_format=memory_format)
    before = x.clone()
    new = PadCropFlip(padding, flip).images(x)
    assert new.shape == x.shape
    assert new.is_contiguous(memory_format=memory_format)
    assert torch.equal(x, before)
    seen = set()
    for image, result in zip(x, new, strict=True):
        fitting = [k for k, v in variants(image, padding, flip).items() if torch.equal(v, result)]
        assert len(fitting) == 1  # all channels by the same shift
        seen.add(fitting[0])
    assert len({mirrored for _, _, mirrored in seen}) == 1 + flip
    assert len({top for top, _, _ in seen}) == len({left for _, left, _ in seen}) == 2 * padding + 1


def test_all_variants_are_as_likely():
    """18 variants, 3,600 images: each count is near 200 with sd 13.7; 5.5 sd, false alarm 1e-6."""
    image = torch.rand(1, 3, 4)
    new = PadCropFlip(padding=1).images(image.expand(3600, 1, 3, 4))
    counts = Counter(tuple(result.flatten().tolist()) for result in new)
    expected = variants(image, 1, True).values()
    assert set(counts) == {tuple(v.flatten().tolist()) for v in expected}
    assert max(abs(count - 200) for count in counts.values()) < 76


def test_randomness_comes_from_the_generator():
    x = torch.rand(20, 1, 6, 6)
    state = torch.random.get_rng_state()
    first, again, other = (
        PadCropFlip(generator=torch.Generator().manual_seed(seed)).images(x) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(3)
    first = PadCropFlip().images(x)
    torch.manual_seed(3)
    assert torch.equal(PadCropFlip().images(x), first)


def test_other_types_and_no_images():
    assert PadCropFlip().images(torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    for dtype in (torch.float64, torch.bfloat16):
        assert PadCropFlip().images(torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == dtype


def test_impossible_options(unchecked):
    with pytest.raises(OptionError, match="padding must be at least 0"):
        PadCropFlip(-1)
    with pytest.raises(OptionError, match="nor zero without flip"):
        PadCropFlip(0, flip=False)
    with pytest.raises(ShapeError, match=r"got \(3, 8, 8\)"):
        PadCropFlip().images(torch.rand(3, 8, 8))
    with pytest.raises(OptionError, match="the generator is on cpu, the images on meta"):
        PadCropFlip(generator=torch.Generator()).images(torch.empty(2, 3, 8, 8, device="meta"))
