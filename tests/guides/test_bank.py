from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError, StatisticsError
from pyronorm.guides import StatisticsBank
from pyronorm.latents import LatentLayer, LatentSpace
from tests.guides.cases import make_bank, make_model
from tests.nets import mlp


def test_shift_and_scale_give_the_batch_statistics_back():
    model = make_model()
    bank = make_bank(model)
    mean, std = model.network.reference_statistics()
    torch.testing.assert_close(mean - std * bank.shift, bank.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std / bank.scale, (bank.var + bank.eps).sqrt())
    assert len(bank) == 40


def test_layers_without_batch_statistics_are_neutral():
    bank = make_bank(make_model())
    mean, var = bank.mean.clone(), bank.var.clone()
    mean[:, 3:], var[:, 3:] = torch.nan, torch.nan
    partly = dataclasses.replace(bank, mean=mean, var=var)
    assert torch.equal(partly.shift[:, 3:], torch.zeros(40, 7))
    assert torch.equal(partly.scale[:, 3:], torch.ones(40, 7))
    assert torch.equal(partly.shift[:, :3], bank.shift[:, :3])


def test_a_bank_of_another_network_is_refused():
    bank = make_bank(make_model())
    other = LatentSpace((LatentLayer("bn", 10, "Batch"),))
    with pytest.raises(
        ShapeError, match=r"here: the bank belongs to another network; .*\('bn', 10\)"
    ):
        bank.check(other, "here")
    with pytest.raises(OptionError, match="needs a bank of at least 41 rows, got 40"):
        bank.check(bank.space, "here", rows=41)


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_fit():
    bank = make_bank(make_model())
    with pytest.raises(ShapeError, match="expected 10 channels"):
        dataclasses.replace(bank, mean=bank.mean[:, :4])
    with pytest.raises(ShapeError, match="at least one row"):
        dataclasses.replace(bank, mean=bank.mean[:0], var=bank.var[:0])


def test_draws_are_rows_each_at_most_once():
    model = make_model()
    bank = make_bank(model, rows=9)
    draws = bank.draw(model, 9)
    assert torch.equal(draws.shift, bank.shift)
    assert torch.equal(draws.scale, bank.scale)
    assert draws.log_density is None
    some = bank.draw(model, 3, seed=1)
    assert torch.equal(some.shift, bank.shift[[0, 4, 8]])
    with pytest.raises(OptionError, match="between 1 and 9, the number of rows, got 10"):
        bank.draw(model, 10)
    with pytest.raises(ShapeError, match="belongs to another network"):
        bank.draw(make_model(network=mlp(5, 4)), 2)


def test_moves():
    bank = make_bank(make_model(), rows=3)
    wide = bank.to(torch.zeros(1, dtype=torch.float64))
    assert {t.dtype for t in (wide.mean, wide.var, wide.reference_mean, wide.eps)} == {
        torch.float64
    }
    assert (wide.space, wide.batch_size, len(wide)) == (bank.space, 16, 3)
    assert bank.to("cpu").shift.device.type == "cpu"
    neutral = StatisticsBank.neutral(bank.space, 4)
    assert torch.equal(neutral.shift, torch.zeros(4, 10))
    assert torch.equal(neutral.scale, torch.ones(4, 10))


def test_repr_is_a_line():
    assert repr(make_bank(make_model(), rows=7)) == (
        "StatisticsBank(7 rows, batches of 16, 10 channels of 2 layers, cpu)"
    )


def test_a_bank_of_other_weights_is_refused():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(64, 3)
    model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=64)
    pn.estimate_population_statistics(model, x)
    bank = pn.collect_bank(model, x, num_batches=5, batch_size=16)
    guide = pn.guides.MonteCarloBatchNorm(model, bank)
    assert len(bank.draw(model, 5)) == len(guide.draw(model, 5)) == 5
    assert len(bank.draw(copy.deepcopy(model).double(), 5)) == 5
    group = pn.NormalizationModel(
        pn.convert(network, pn.normalizers.Group(2)), pn.likelihoods.Categorical(), num_data=64
    )
    assert len(bank.draw(group, 5)) == 5  # nothing to compare with
    with torch.no_grad():
        model.network.network[0].weight.mul_(1.1)
    pn.estimate_population_statistics(model, x)
    for use in (
        lambda: bank.draw(model, 5),
        lambda: pn.guides.MonteCarloBatchNorm(model, bank),
        lambda: pn.guides.StochasticBatchNorm(model, bank),
        lambda: pn.predict(model, bank, x),
    ):
        with pytest.raises(StatisticsError, match="the bank is of other weights"):
            use()
    assert len(type(bank).neutral(model.space, 3).draw(model, 3)) == 3


def test_values_changed_in_place_are_looked_at_again():
    model = make_model()
    for name, value in (("mean", torch.nan), ("var", -1.0)):
        bank = make_bank(model)
        getattr(bank, name)[1] = value
        for use in (lambda b: b.draw(model, 2), lambda b: pn.guides.MonteCarloBatchNorm(model, b)):
            with pytest.raises(DataError, match=f"StatisticsBank: {name} must be finite"):
                use(bank)
