from __future__ import annotations

import math

import pytest
import torch

from pyronorm.datasets import Table
from pyronorm.errors import DataError, OptionError, ShapeError

NAMES = ("a", "b", "c")


def made(num: int = 40) -> Table:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(num, 3, generator=generator, dtype=torch.float64) * 100 + 7
    y = 3 * x[:, 0] - x[:, 1] + 1000
    return Table("made", x, y, NAMES, "target")


def classes(num: int = 40) -> Table:
    return Table("made", made(num).x, torch.arange(num) % 4, NAMES, "kind", 4)


def rows(x: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(round(v, 3) for v in row) for row in x.tolist())


@pytest.mark.parametrize(("share", "num_test"), [(0.1, 4), (0.33, 13)])
def test_split_standardizes_by_the_training_part(share, num_test):
    table = made()
    data = table.split(seed=3, test_share=share)
    assert (len(data.train.y), len(data.test.y)) == (40 - num_test, num_test)
    assert data.train.x.dtype == data.train.y.dtype == torch.float32
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.x.var(0, correction=0), torch.ones(3))
    torch.testing.assert_close(float(data.train.y.mean()), 0.0, atol=1e-6, rtol=0)
    torch.testing.assert_close(float(data.train.y.var(correction=0)), 1.0, atol=1e-5, rtol=0)
    # In the original units again, the parts are the table's rows, each once.
    x = torch.cat([data.train.x, data.test.x]) * data.x_std + data.x_mean
    y = torch.cat([data.train.y, data.test.y]) * data.y_std + data.y_mean
    torch.testing.assert_close(x.sort(0).values, table.x.float().sort(0).values)
    torch.testing.assert_close(y, 3 * x[:, 0] - x[:, 1] + 1000, atol=1e-2, rtol=0)
    assert (data.feature_names, data.target_name) == (NAMES, "target")


def test_the_density_in_original_units_is_lower_by_log_y_std():
    """What the docstring says, on a normal density."""
    data = made().split()
    m, s, y = torch.tensor(0.3), torch.tensor(0.7), data.test.y[0]
    standardized = torch.distributions.Normal(m, s).log_prob(y)
    original = torch.distributions.Normal(data.y_mean + data.y_std * m, data.y_std * s)
    expected = original.log_prob(data.y_mean + data.y_std * y)
    torch.testing.assert_close(standardized - math.log(data.y_std), expected, rtol=1e-4, atol=1e-4)


def test_the_seed_decides_the_split():
    table = made()
    first, again, other = table.split(1), table.split(1), table.split(2)
    assert torch.equal(first.test.x, again.test.x)
    assert first.y_mean != other.y_mean


def test_a_feature_that_does_not_vary_is_only_centered():
    table = made()
    table.x[:, 1] = 0.1  # its mean is not exactly 0.1
    data = table.split()
    assert data.x_std[1] == 1
    assert data.train.x[:, 1].abs().max() < 1e-6


def test_classes_keep_their_shares_and_are_not_standardized():
    data = classes().split(5, 0.2)
    assert torch.bincount(data.test.y).tolist() == [2, 2, 2, 2]
    assert data.train.y.dtype == torch.int64
    assert data.y_mean is None
    assert data.y_std is None
    assert data.num_classes == 4


@pytest.mark.parametrize("make", [made, classes])
def test_split_off(make):
    data = make().split()
    rest, validation = data.split_off(16, seed=2)
    assert len(validation.y) == len(validation.x) == 16
    assert len(rest.train.y) == 20
    assert rows(torch.cat([rest.train.x, validation.x])) == rows(data.train.x)
    assert rest.test.x is data.test.x
    if make is classes:
        assert torch.bincount(validation.y).tolist() == [4, 4, 4, 4]
    for num in (0, 36):
        with pytest.raises(
            OptionError, match="num_validation must be (between 1 and 35|at least 1)"
        ):
            data.split_off(num)


def test_shares_that_leave_a_part_empty():
    for share in (0.0, 0.01, 0.99, 1.0, -0.1):
        with pytest.raises(OptionError, match="test_share"):
            made().split(0, share)


def test_a_constant_target():
    table = made()
    with pytest.raises(DataError, match="made: target is the same"):
        Table("made", table.x, torch.full_like(table.y, 2.0), NAMES, "target").split()


def test_tables_that_do_not_fit(unchecked):
    x, y = made().x, made().y
    for bad in ((x, y[:-1], NAMES), (x, y, NAMES[:2]), (x[:, :2], y, NAMES)):
        with pytest.raises(ShapeError, match="d: expected"):
            Table("d", *bad, "t")
    for part in (0, 1):
        values = [x.clone(), y.clone()]
        values[part].view(-1)[5] = math.inf
        with pytest.raises(DataError, match="d: a value is not finite"):
            Table("d", *values, NAMES, "t")
    with pytest.raises(DataError, match="d: expected classes 0 to 2"):
        Table("d", x, torch.arange(40) % 4, NAMES, "t", 3)
