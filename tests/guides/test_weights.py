"""Guides belong to weights: a network with others is refused."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from pyro.infer import autoguide
from torch import nn

import pyronorm as pn
from pyronorm.errors import ShapeError, StatisticsError
from pyronorm.normalizers import Batch, Group

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def build(normalizer=None, names=("first", "norm"), seed: int = 0) -> pn.NormalizationModel:
    torch.manual_seed(seed)
    network = nn.Sequential()
    network.add_module(names[0], nn.Linear(3, 4))
    network.add_module(names[1], nn.BatchNorm1d(4))
    network.add_module("last", nn.Linear(4, 2))
    network = pn.convert(network, normalizer or Batch())
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=64)
    pn.estimate_population_statistics(model, X)
    return model


def fit(model, guide, **options) -> None:
    pn.fit(model, guide, (X, Y), epochs=1, progress=False, seed=0, **options)


def change(model) -> None:
    with torch.no_grad():
        model.network.network[0].weight.mul_(1.1)
    pn.estimate_population_statistics(model, X)


@pytest.mark.parametrize("normalizer", [Batch(), Group(2)], ids=str)
@pytest.mark.parametrize("train_network", [True, False])
def test_a_trained_guide_belongs_to_the_weights_it_was_trained_with(normalizer, train_network):
    model = build(normalizer)
    guide = pn.guides.MeanField(model)
    pn.predict(model, guide, X, 3)  # not trained yet: of no weights
    fit(model, guide, train_network=train_network)
    pn.predict(model, guide, X, 3)
    loaded = pn.guides.MeanField(model)
    loaded.load_state_dict(guide.state_dict())
    other = copy.deepcopy(model).double()
    pn.predict(other, guide, X, 3)
    pn.estimate_population_statistics(model, X[:50])  # the same weights
    pn.predict(model, guide, X, 3)
    fit(model, pn.guides.Point(model))
    for stale in (guide, loaded):
        for use in (
            lambda g=stale: pn.predict(model, g, X, 3),
            lambda g=stale: pn.evaluate(model, g, (X, Y), 3),
            lambda g=stale: pn.to_arviz(model, g, None, 3),
        ):
            with pytest.raises(
                StatisticsError, match="MeanField: the guide belongs to other weights"
            ):
                use()
    loaded.stamp(model)
    pn.predict(model, loaded, X, 3)
    fit(model, guide)  # trained again, it belongs to the new ones
    pn.predict(model, guide, X, 3)
    pn.Ensemble([(model, guide), (other, copy.deepcopy(loaded))])


def test_of_a_network_of_the_same_form():
    model, other = build(seed=0), build(seed=1)
    guide = pn.guides.LowRank(model, 2)
    fit(model, guide)
    with pytest.raises(StatisticsError, match="other weights"):
        pn.predict(other, guide, X, 3)


def test_guides_made_from_a_bank_belong_to_its_weights():
    model = build()
    bank = pn.collect_bank(model, X, num_batches=6, batch_size=16)
    made = [
        pn.guides.MonteCarloBatchNorm(model, bank),
        pn.guides.StochasticBatchNorm(model, bank),
        pn.guides.LowRank.from_bank(model, bank, rank=2),
    ]
    for guide in made:
        pn.predict(model, guide, X, 3)
    change(model)
    for guide in made:
        with pytest.raises(StatisticsError, match="other weights"):
            pn.predict(model, guide, X, 3)


def test_laws_that_nothing_was_learned_for_belong_to_none():
    model = build()
    laws = [
        pn.guides.Point(model),
        pn.guides.BatchNoise(model, 32),
        pn.guides.Fixed(model, pn.priors.Standard()),
        pn.guides.PopulationStatistics(model, 100),
    ]
    for guide in laws:
        fit(model, guide)
        pn.predict(model, guide, X, 3)
    change(model)
    for guide in laws:
        pn.predict(model, guide, X, 3)


def test_early_stopping_and_files_keep_the_stamp(tmp_path):
    model = build()
    guide = pn.guides.MeanField(model)
    fit(
        model,
        guide,
        lr=0.5,
        validation=pn.Validation((X, Y)),
        callbacks=[pn.EarlyStopping(patience=1)],
    )
    pn.predict(model, guide, X, 3)
    pn.save(tmp_path / "model.safetensors", model, guide)
    original = nn.Sequential()
    original.add_module("first", nn.Linear(3, 4))
    original.add_module("norm", nn.BatchNorm1d(4))
    original.add_module("last", nn.Linear(4, 2))
    loaded, posterior = pn.load(tmp_path / "model.safetensors", original)
    pn.predict(loaded, posterior, X, 3)
    change(loaded)
    with pytest.raises(StatisticsError, match="other weights"):
        pn.predict(loaded, posterior, X, 3)


@pytest.mark.parametrize("kind", [pn.guides.MeanField, autoguide.AutoNormal, autoguide.AutoDelta])
def test_a_guide_of_another_model_with_as_many_channels(kind):
    model, other = build(), build(names=("a", "b"))
    guide = kind(model)
    with pytest.raises(ShapeError, match=r"the guide was made for another network.*'norm': 4"):
        fit(other, guide)
    fit(model, guide)
    for use in (
        lambda: pn.predict(other, guide, X, 3),
        lambda: pn.to_arviz(other, guide, X, 3),
        lambda: fit(other, guide),
    ):
        with pytest.raises(ShapeError, match="the guide was made for another network"):
            use()


@pytest.mark.parametrize(
    "kind",
    [
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoDelta,
    ],
)
def test_an_autoguide_loads_before_its_first_step(kind):
    model = build()
    trained = kind(model)
    fit(model, trained)
    with pyro.get_param_store().scope():
        fresh = kind(model)
        fresh()
        fresh.load_state_dict(trained.state_dict())
    means = [pn.predict(model, g, X, 3, seed=0).mean for g in (trained, fresh)]
    torch.testing.assert_close(*means)
    fit(model, fresh)
