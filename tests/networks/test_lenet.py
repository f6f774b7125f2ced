"""LeNet-5: parameter counts of the literature."""

from __future__ import annotations

import pytest
import torch

from pyronorm.errors import OptionError
from pyronorm.networks import LeNet5

from .cases import num_parameters


def test_number_of_parameters() -> None:
    assert num_parameters(LeNet5(norm=None)) == 61_706
    assert num_parameters(LeNet5.caffe(norm=None)) == 431_080


@pytest.mark.parametrize("size", [16, 28, 32])
def test_any_size_of_images(size: int) -> None:
    assert LeNet5(7, 3, image_size=size)(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_caffe_passes_its_arguments_on() -> None:
    network = LeNet5.caffe(4, 2, None, 0.5, image_size=20)
    assert network.layers[4].p == 0.5
    assert network(torch.randn(3, 2, 20, 20)).shape == (3, 4)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(OptionError, match="images of 11x11 are too small"):
        LeNet5(image_size=11)
