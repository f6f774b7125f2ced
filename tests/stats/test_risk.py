"""Selective risk by its definition."""

from __future__ import annotations

import itertools

import torch

from pyronorm.stats.risk import risk_by_rank


def test_examples_that_tie_come_in_every_order() -> None:
    uncertainty = torch.tensor([0.5, 0.1, 0.5, 0.5, 0.9])
    loss = torch.tensor([1.0, 2.0, 0.0, 4.0, 8.0])
    orders = [(1, *tied, 4) for tied in itertools.permutations((0, 2, 3))]
    ranks = torch.arange(1, 6)
    expected = torch.stack([loss[list(o)].cumsum(0) / ranks for o in orders]).mean(0)
    risk, share = risk_by_rank(uncertainty, loss)
    torch.testing.assert_close(risk, expected.double())
    assert share.tolist() == [0.2] * 5


def test_weights_are_repetitions() -> None:
    uncertainty = torch.tensor([0.3, 0.1, 0.2, 0.4])
    loss = torch.tensor([1.0, 0.0, 1.0, 0.0])
    times = torch.tensor([2, 0, 3, 1])
    risk, share = risk_by_rank(uncertainty, loss, times)
    whole, _ = risk_by_rank(uncertainty.repeat_interleave(times), loss.repeat_interleave(times))
    # The last of each example's repetitions; the one without weight stands first, at no risk.
    torch.testing.assert_close(risk[1:], whole[[2, 4, 5]])
    assert share.tolist() == [0.0, 0.5, 1 / 3, 1 / 6]
