"""Moments of what layers see, against SciPy."""

from __future__ import annotations

import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from pyronorm import convert
from pyronorm.diagnostics import input_shape
from pyronorm.errors import ConversionError, DataError
from tests.nets import conv_net, mlp


def test_input_shape_is_that_of_the_values():
    network = convert(conv_net(2))
    x = torch.randn(50, 2, 5, 6).exp()
    seen = []
    first = dict(network.named_modules())["1"]
    handle = first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    network.train()
    with torch.no_grad():
        network(x)
    handle.remove()
    values = seen[0].movedim(1, 0).flatten(1).double().numpy()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = input_shape(network, [x[:20], x[20:]])
    assert found.skewness[:4].tolist() == pytest.approx(
        scipy_stats.skew(values, axis=1).tolist(), rel=1e-4
    )
    assert found.kurtosis[:4].tolist() == pytest.approx(
        scipy_stats.kurtosis(values, axis=1).tolist(), rel=1e-4
    )
    assert found.skewness.shape == (10,)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_errors():
    with pytest.raises(ConversionError, match="no batch normalizer"):
        input_shape(convert(mlp(norm=lambda c: nn.GroupNorm(2, c))), torch.randn(9, 5))
    with pytest.raises(DataError, match="no batch"):
        input_shape(convert(mlp()), [])
