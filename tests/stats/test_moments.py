"""Oracles: numpy, torch's own batch norm statistics, and moments of the concatenation."""

import dataclasses
from functools import reduce

import numpy as np
import pytest
import torch
from torch import nn

from pyronorm.stats import Moments, channel_moments, merge_moments

SHAPES = [(7, 3), (5, 3, 4), (4, 3, 5, 2), (2, 4, 3, 5, 6)]


def assert_moments(moments, mean, var, rtol=1e-12):
    assert isinstance(moments.count, int)
    torch.testing.assert_close(moments.mean, torch.as_tensor(mean), rtol=rtol, atol=0)
    torch.testing.assert_close(moments.var, torch.as_tensor(var), rtol=rtol, atol=0)


def numpy_moments(x):
    """Count, mean and biased variance, of a float64 copy."""
    values = x.double().numpy()
    axes = (0, *range(2, values.ndim))
    return values[:, 0].size, values.mean(axes), values.var(axes, ddof=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_channel_moments_match_numpy(shape, dtype):
    x = (torch.randn(shape) * torch.rand(shape[1]).view(-1, *[1] * (len(shape) - 2)) + 2).to(dtype)
    count, mean, var = numpy_moments(x)
    moments = channel_moments(x)
    assert moments.count == count
    assert moments.mean.shape == moments.var.shape == (shape[1],)
    assert_moments(moments, mean, var, rtol=1e-12 if dtype == torch.float64 else 1e-6)


def test_channel_moments_match_batch_norm():
    x = torch.randn(6, 3, 5, 4, dtype=torch.float64) * 3 - 1
    bn = nn.BatchNorm2d(3, eps=1e-300, affine=False, dtype=torch.float64)
    m = channel_moments(x)
    standardized = (x - m.mean[:, None, None]) / m.var.sqrt()[:, None, None]
    torch.testing.assert_close(standardized, bn(x))


def test_float32_input_far_from_zero_keeps_its_variance():
    x = torch.randn(400, 3) + 1e4  # E x^2 - (E x)^2 in float32 would have no correct digit
    assert_moments(channel_moments(x), *numpy_moments(x)[1:], rtol=1e-10)


@pytest.mark.parametrize("shape", [(3, 5, 64, 64), (20, 5, 40), (40, 5)])
@pytest.mark.parametrize("sds", [0.0, 2.0, 3.8, 4.2, 30.0])
def test_float32_keeps_the_variance_however_far_the_mean_is(sds, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + sds
    _, mean, var = numpy_moments(x)
    moments = channel_moments(x)
    torch.testing.assert_close(moments.mean, torch.as_tensor(mean), rtol=0, atol=1e-6 * (1 + sds))
    torch.testing.assert_close(moments.var, torch.as_tensor(var), rtol=5e-6, atol=0)


def test_channels_last_gives_the_same():
    x = torch.randn(4, 3, 5, 2)
    a, b = channel_moments(x), channel_moments(x.to(memory_format=torch.channels_last))
    assert_moments(b, a.mean, a.var, rtol=1e-6)


def test_single_value_has_no_variance():
    m = channel_moments(torch.tensor([[2.0, -3.0]]))
    assert m.count == 1
    assert m.mean.tolist() == [2.0, -3.0]
    assert m.var.tolist() == [0.0, 0.0]


def test_moments_are_float64_and_detached():
    x = torch.randn(4, 3, requires_grad=True)
    m = channel_moments(x)
    assert m.mean.dtype == m.var.dtype == torch.float64
    assert not m.mean.requires_grad
    assert not m.var.requires_grad


@pytest.mark.parametrize("sizes", [(3, 5), (1, 6), (1, 1), (4, 1, 9, 2)])
@pytest.mark.parametrize("spatial", [(), (4, 2)])
def test_merge_is_moments_of_the_union(sizes, spatial):
    # parts with different means and widths: both terms of the merged variance matter
    parts = [
        torch.randn(n, 3, *spatial, dtype=torch.float64) * (i + 1) + 5 * i
        for i, n in enumerate(sizes)
    ]
    count, mean, var = numpy_moments(torch.cat(parts))
    moments = [channel_moments(part) for part in parts]
    for order in (moments, moments[::-1]):
        merged = reduce(merge_moments, order)
        assert merged.count == count
        assert_moments(merged, mean, var)


def test_merge_by_hand():
    a = Moments(2, torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0]))
    b = Moments(6, torch.tensor([5.0, 0.0]), torch.tensor([8.0, 3.0]))
    m = merge_moments(a, b)
    # (2*1 + 6*5)/8 = 4; (2*4 + 6*8)/8 + 16*12/64 = 10; second channel (2*1 + 6*3)/8 = 2.5
    assert (m.count, m.mean.tolist(), m.var.tolist()) == (8, [4.0, 0.0], [10.0, 2.5])


@pytest.mark.parametrize("sizes", [(3, 5), (1, 6), (4, 1, 9, 2)])
def test_merged_covariances_are_those_of_the_union(sizes):
    parts = [torch.randn(n, 6, dtype=torch.float64) * (i + 1) + 5 * i for i, n in enumerate(sizes)]

    def moments(x):
        groups = [np.cov(g.numpy().T, bias=True) for g in x.split(3, 1)] if len(x) > 1 else 0
        cov = torch.zeros(2, 3, 3, dtype=torch.float64) + torch.as_tensor(np.array(groups))
        return Moments(len(x), x.mean(0), x.var(0, correction=0), cov)

    expected = moments(torch.cat(parts))
    merged = reduce(merge_moments, map(moments, parts))
    assert_moments(merged, expected.mean, expected.var)
    torch.testing.assert_close(merged.cov, expected.cov, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.cov.diagonal(dim1=1, dim2=2).flatten(), merged.var)


def test_covariances_are_merged_where_both_parts_have_them():
    a = Moments(2, torch.zeros(2), torch.ones(2), torch.eye(2)[None])
    b = Moments(2, torch.zeros(2), torch.ones(2))
    assert merge_moments(a, b).cov is merge_moments(b, a).cov is None


def test_double_is_float64_and_detached():
    x = torch.ones(2, requires_grad=True)
    wide = Moments(3, x * 2, x * 3, x * torch.eye(2)[None]).double()
    for value, expected in ((wide.mean, 2 * x), (wide.var, 3 * x), (wide.cov, torch.eye(2)[None])):
        assert value.dtype == torch.float64
        assert not value.requires_grad
        torch.testing.assert_close(value, expected.detach().double())
    assert Moments(3, x, x).double().cov is None


def test_merge_survives_many_small_parts():
    x = torch.randn(2000, 2, dtype=torch.float64) + 1e6
    merged = reduce(merge_moments, (channel_moments(part) for part in x.split(1)))
    assert merged.count == 2000
    assert_moments(merged, *numpy_moments(x)[1:], rtol=1e-9)


def test_moments_are_immutable_values():
    m = channel_moments(torch.randn(4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError, match="count"):
        m.count = 3


def test_inputs_are_not_changed():
    a, b = channel_moments(torch.randn(4, 2)), channel_moments(torch.randn(3, 2))
    tensors = [a.mean, a.var, b.mean, b.var]
    before = [t.clone() for t in tensors]
    merge_moments(a, b)
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
