from __future__ import annotations

import pytest
import torch

from pyronorm.errors import ShapeError
from pyronorm.normalizers import Deviation, LatentNorm


@pytest.mark.parametrize(
    ("options", "axes", "shape"),
    [
        ({}, (1, 2, 3), (4, 6, 5, 3)),
        ({"per_position": True}, (1,), (4, 6, 5, 3)),
        ({"channel_last": True}, (-1,), (4, 5, 3, 6)),
    ],
)
def test_the_unbiased_deviation_and_no_mean(options, axes, shape):
    last = options.pop("channel_last", False)
    layer = LatentNorm(Deviation(eps=1e-2, **options), 6, channel_last=last).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.double) * 2 + 3
    w, b = (p if last else p[:, None, None] for p in (layer.weight, layer.bias))
    deviation = (x.std(axes, keepdim=True).square() + 1e-2).sqrt()
    torch.testing.assert_close(layer(x), w * x / deviation + b)


def test_a_single_value_is_refused():
    with pytest.raises(ShapeError, match="at least 2 values"):
        LatentNorm(Deviation(), 1)(torch.randn(4, 1))
