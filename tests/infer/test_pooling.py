"""Oracle: moments merged layer by layer."""

from __future__ import annotations

import torch

from pyronorm.infer.pooling import Pool
from pyronorm.normalizers import Batch, BatchWhitening, LatentNorm
from pyronorm.stats import Moments, channel_moments, merge_moments

LAYERS = [LatentNorm(Batch(), 3), LatentNorm(Batch(), 2), LatentNorm(BatchWhitening(2), 4)]


def test_orders_counts_and_precisions_as_they_come():
    torch.manual_seed(0)
    pool, expected = Pool(), {}
    for batch, order in enumerate([(0, 1), (0, 1), (0, 0, 1), (1,), (0, 1)]):
        for time, place in enumerate(order):
            layer = LAYERS[place]
            x = torch.randn(3 + batch, layer.num_channels, 5 - place + time)
            moments = channel_moments(x * (1 + batch) - 3 * batch)
            if batch == 1:
                moments = Moments(moments.count, moments.mean.float(), moments.var.float())
            pool.add(layer, moments)
            mine = moments.double()
            expected[layer] = merge_moments(expected[layer], mine) if layer in expected else mine
        pool.end_batch()
    totals = pool.totals()
    assert totals.keys() == expected.keys()
    for layer, moments in expected.items():
        assert totals[layer].count == moments.count
        torch.testing.assert_close(totals[layer].mean, moments.mean)
        torch.testing.assert_close(totals[layer].var, moments.var)


def test_covariances_are_merged_too():
    parts = [
        Moments(n, torch.randn(4), torch.rand(4), torch.eye(2).repeat(2, 1, 1)) for n in (3, 8)
    ]
    pool = Pool()
    for part in parts:
        pool.add(LAYERS[2], part)
        pool.end_batch()
    expected = merge_moments(*(part.double() for part in parts))
    torch.testing.assert_close(pool.totals()[LAYERS[2]].cov, expected.cov)


def test_nothing():
    assert Pool().totals() == {}
