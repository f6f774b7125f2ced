from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyronorm as pn
from pyronorm.infer import Epoch, History

mpl.use("Agg")


def judged(*nll: float | None, kept: int = 0) -> History:
    epochs = [Epoch(i + 1, 2.0 - i / 2, 1.0, 0.1, 0.5, v) for i, v in enumerate(nll)]
    return History(epochs, kept or len(nll))


def test_sums_over_epochs():
    history = judged(None, None)
    assert history.losses == [2.0, 1.5]
    assert history.seconds == 1.0
    assert history.epochs[0].validation_nll is None


def test_a_history_is_a_line_and_a_table():
    assert repr(History()) == "History(no epochs)"
    assert repr(judged(None, None)) == "History(2 epochs in 1 s, loss 2 to 1.5)"
    history = judged(None, 0.75, kept=1)
    assert repr(history) == (
        "History(2 epochs in 1 s, loss 2 to 1.5, validation NLL 0.75; parameters of epoch 1)"
    )
    table = history.to_dataframe()
    assert list(table.index) == [1, 2]
    assert list(table["loss"]) == [2.0, 1.5]
    assert table["validation_nll"].isna().tolist() == [True, False]
    assert "0.75" in history._repr_html_()
    assert History().to_dataframe().empty


def test_a_history_says_when_the_last_epoch_was_worse_than_the_best():
    history = judged(0.8, 0.5, float("nan"), 0.7)
    assert history.best_epoch == 2
    assert repr(history).endswith(
        "validation NLL 0.7, worse than 0.5 in epoch 2; parameters of the last, "
        "pyronorm.EarlyStopping keeps the best)"
    )
    assert "worse" not in repr(judged(0.8, 0.5))
    assert judged(None, None).best_epoch == 2
    assert History().best_epoch == 0
    stored = History()
    stored.load_state_dict(history.state_dict())
    assert repr(stored) == repr(history)


def test_a_history_has_a_plot():
    ax = judged(0.8, 0.5, 0.7, kept=2).plot()
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["validation NLL"].get_ydata()) == [0.8, 0.5, 0.7]
    assert list(ax.lines[-1].get_xdata()) == [2]
    assert judged(None).plot(ax=ax) is ax
    History().plot()


def trained(make_guide, **options) -> tuple[pn.NormalizationModel, nn.Module, History]:
    torch.manual_seed(0)
    x, y = torch.randn(32, 3), torch.randint(2, (32,))
    network = pn.convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=32)
    guide = make_guide(model)
    options = {"epochs": 2, "batch_size": 12, "lr": 1e-9, "seed": 0, "progress": False, **options}
    return model, guide, pn.fit(model, guide, (x, y), **options)


def test_the_loss_is_split_into_likelihood_and_divergence():
    model, guide, history = trained(pn.guides.MeanField)
    for epoch in history.epochs:
        assert epoch.loss == pytest.approx(epoch.nll + epoch.kl, rel=1e-6)
        assert epoch.kl == pytest.approx(float(guide.kl(model.prior).detach()) / 32, rel=1e-4)
    _, _, half = trained(pn.guides.MeanField, objective=pn.Objective(kl_weight=0.5))
    assert half.epochs[0].kl == pytest.approx(history.epochs[0].kl, rel=1e-4)
    assert half.epochs[0].nll == pytest.approx(history.epochs[0].nll, rel=1e-4)


def test_pyros_own_guides_have_the_split_too_and_own_estimators_have_none():
    _, _, history = trained(AutoNormal)
    (first, _) = history.epochs
    assert first.loss == pytest.approx(first.nll + first.kl, rel=1e-5)
    assert 0.5 < first.nll < 2
    _, _, own = trained(pn.guides.MeanField, objective=pn.Objective(elbo=Trace_ELBO()))
    assert own.epochs[0].nll is own.epochs[0].kl is None
    _, _, none = trained(pn.guides.MeanField, objective=pn.Objective(kl_weight=0.0))
    assert none.epochs[0].nll == pytest.approx(none.epochs[0].loss)
    assert none.epochs[0].kl is None
