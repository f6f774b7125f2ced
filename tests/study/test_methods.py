"""The rows of a comparison."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm import guides
from pyronorm.errors import OptionError
from pyronorm.normalizers import Analytic, Group, GroupWhitening, Weight
from pyronorm.study import METHODS, Method, choose_methods

# name: normalizer, guide that is trained, guide that predicts, training it shares
ROWS = {
    "batch/point": (type(None), guides.Point, guides.Point, "batch/point"),
    "batch/mcbn": (type(None), guides.Point, guides.MonteCarloBatchNorm, "batch/point"),
    "batch/stochastic": (type(None), guides.Point, guides.StochasticBatchNorm, "batch/point"),
    "batch/bank-low-rank": (type(None), guides.Point, guides.LowRank, "batch/point"),
    "weight/point": (Weight, guides.Point, guides.Point, "weight/point"),
    "weight/fixed": (Weight, guides.BatchNoise, guides.BatchNoise, "weight/fixed"),
    "weight/mean-field": (Weight, guides.MeanField, guides.MeanField, "weight/mean-field"),
    "weight/low-rank": (Weight, guides.LowRank, guides.LowRank, "weight/low-rank"),
    "group/point": (Group, guides.Point, guides.Point, "group/point"),
    "group/fixed": (Group, guides.BatchNoise, guides.BatchNoise, "group/fixed"),
    "group/mean-field": (Group, guides.MeanField, guides.MeanField, "group/mean-field"),
    "group/low-rank": (Group, guides.LowRank, guides.LowRank, "group/low-rank"),
    "analytic/point": (Analytic, guides.Point, guides.Point, "analytic/point"),
    "analytic/fixed": (Analytic, guides.BatchNoise, guides.BatchNoise, "analytic/fixed"),
    "analytic/mean-field": (
        Analytic,
        guides.MeanField,
        guides.MeanField,
        "analytic/mean-field",
    ),
    "analytic/low-rank": (Analytic, guides.LowRank, guides.LowRank, "analytic/low-rank"),
    "group-whitening/point": (
        GroupWhitening,
        guides.Point,
        guides.Point,
        "group-whitening/point",
    ),
    "group-whitening/mean-field": (
        GroupWhitening,
        guides.MeanField,
        guides.MeanField,
        "group-whitening/mean-field",
    ),
}


@pytest.fixture
def model() -> pn.NormalizationModel:
    network = pn.convert(
        nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
    )
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=50)


@pytest.fixture
def bank(model: pn.NormalizationModel) -> pn.StatisticsBank:
    x = torch.randn(50, 4)
    pn.estimate_population_statistics(model, x)
    return pn.collect_bank(model, x, num_batches=13, batch_size=9)


def test_the_rows_and_their_order() -> None:
    assert list(METHODS) == list(ROWS)
    assert all(name == method.name for name, method in METHODS.items())
    assert all(method.description for method in METHODS.values())


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_what_it_says(
    name: str, model: pn.NormalizationModel, bank: pn.StatisticsBank
) -> None:
    normalizer, trained, predicts, training = ROWS[name]
    method = METHODS[name]
    assert type(method.normalizer) is normalizer
    assert method.training == training
    guide = method.guide(model, 25.0)
    assert type(guide) is trained
    if method.from_bank is None:
        assert trained is predicts
    else:
        assert type(method.from_bank(model, bank)) is predicts


def test_group_normalization_has_eight_groups() -> None:
    assert all(
        method.normalizer == Group(8)
        for method in METHODS.values()
        if method.name.split("/")[0] == "group"
    )


@pytest.mark.parametrize("normalizer", ["weight", "group"])
def test_explicit_guides_start_at_the_noise_of_the_batch_size(
    normalizer: str, model: pn.NormalizationModel
) -> None:
    n = 25.0
    fixed = METHODS[f"{normalizer}/fixed"].guide(model, n)
    assert fixed.batch_size == n
    mean_field = METHODS[f"{normalizer}/mean-field"].guide(model, n)
    std = mean_field.shift_log_std.exp()
    torch.testing.assert_close(std, torch.full((7,), 1 / math.sqrt(n)))
    # psi_1((n - 1) / 2) / 4 is the variance of log scale
    variance = float(torch.special.polygamma(1, torch.tensor((n - 1) / 2))) / 4
    found = (2 * mean_field.log_scale_log_std).exp()
    torch.testing.assert_close(found, torch.full((7,), variance))


def test_low_rank_starts_where_mean_field_does(model: pn.NormalizationModel) -> None:
    low_rank, mean_field = (
        METHODS[f"weight/{g}"].guide(model, 25.0) for g in ("low-rank", "mean-field")
    )
    assert low_rank.factor.shape == (14, 10)
    log_std = torch.cat([mean_field.shift_log_std, mean_field.log_scale_log_std])
    torch.testing.assert_close(low_rank.covariance().diagonal(), (2 * log_std).exp())
    loc = torch.cat([mean_field.shift_loc, mean_field.log_scale_loc])
    torch.testing.assert_close(low_rank.loc.detach(), loc.detach())


def test_bank_posteriors_are_those_of_the_bank(
    model: pn.NormalizationModel, bank: pn.StatisticsBank
) -> None:
    made = {
        key: METHODS[f"batch/{key}"].from_bank(model, bank)
        for key in ("mcbn", "stochastic", "bank-low-rank")
    }
    torch.testing.assert_close(made["mcbn"].scale, bank.scale)
    torch.testing.assert_close(made["stochastic"].shift_std, bank.shift.std(0))
    assert made["bank-low-rank"].factor.shape == (14, 10)
    rows = torch.cat([bank.shift, bank.scale.log()], -1)
    torch.testing.assert_close(made["bank-low-rank"].loc, rows.mean(0))


def test_a_row_of_ones_own() -> None:
    def make(model: pn.NormalizationModel, batch_size: float) -> guides.Guide:
        return guides.Point(model)

    assert Method("mine/own", None, make, None, "").training == "mine/own"
    assert Method("mine/own", None, make, guides.MonteCarloBatchNorm, "").training == "mine/point"


def test_choose_all() -> None:
    assert choose_methods("all") == list(METHODS.values())


def test_the_default_takes_a_few_minutes() -> None:
    chosen = choose_methods(None)
    assert chosen == choose_methods() == choose_methods("batch,weight,group")
    assert len(chosen) == 12


def test_choose_keeps_the_order_given() -> None:
    chosen = choose_methods(["weight/fixed", "batch/point"])
    assert chosen == [METHODS["weight/fixed"], METHODS["batch/point"]]


@pytest.mark.parametrize("normalizer", ["batch", "weight", "group"])
def test_choose_all_methods_of_a_normalizer(normalizer: str) -> None:
    expected = [name for name in ROWS if name.startswith(f"{normalizer}/")]
    assert [method.name for method in choose_methods([normalizer])] == expected


def test_a_method_named_twice_is_one_row() -> None:
    chosen = choose_methods(iter(["group/fixed", "group", "batch/point", "group/fixed"]))
    assert [method.name for method in chosen] == [
        "group/fixed",
        "group/point",
        "group/mean-field",
        "group/low-rank",
        "batch/point",
    ]


@pytest.mark.parametrize(
    ("name", "near"),
    [("batch/mcbm", "batch/mcbn"), ("weight/meanfield", "weight/mean-field"), ("qqq", None)],
)
def test_an_unknown_name_lists_the_choices(name: str, near: str | None) -> None:
    with pytest.raises(OptionError) as error:
        choose_methods(["batch/point", name])
    message = str(error.value)
    assert f"no method {name!r}" in message
    assert (f"Did you mean {near!r}?" in message) if near else ("Did you mean" not in message)
    choices = message.split("Choose from ")[1]
    assert choices.rstrip(".").split(", ") == list(ROWS)


@pytest.mark.parametrize("name", ["", "batch/", "/point", "point", "BATCH/POINT", "batch/point "])
def test_names_are_exact(name: str) -> None:
    with pytest.raises(OptionError):
        choose_methods([name])
