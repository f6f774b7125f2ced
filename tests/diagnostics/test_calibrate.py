"""Choosing by held-out data, against the same by hand."""

from __future__ import annotations

import sys

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError, StatisticsError
from tests.nets import mlp


@pytest.fixture
def trained():
    """A network, and data from the classes that it predicts under one particular draw."""
    network = pn.convert(mlp())
    pn.estimate_population_statistics(network, torch.randn(200, 5))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 200)
    torch.nn.init.normal_(network[-1].weight, std=2.0)
    pn.trust_statistics(network)
    channels = model.space.num_channels
    truth = pn.Draws(torch.randn(1, channels), torch.rand(1, channels) + 0.5)
    x = torch.randn(300, 5)
    with torch.no_grad():
        logits = pn.predict(model, truth, x).outputs[0]
    y = torch.distributions.Categorical(logits=logits / 2).sample()
    return model, truth, x, y


def test_the_right_posterior_is_chosen_at_its_temperature(trained):
    model, truth, x, y = trained
    again = pn.guides.Point(model)
    found = pn.calibrate(model, (x, y), candidates={"truth": truth, "again": again}, num_samples=1)
    assert found.name == "truth"
    assert found.posterior is truth
    assert found.temperature == pytest.approx(2, rel=0.3)
    rows = {row.name: row for row in found.candidates}
    assert rows["again"].difference == 0
    assert rows["again"].calibrated_nll == rows["plain"].calibrated_nll
    # the chosen model predicts at that temperature
    nll = pn.infer.predictive_nll(found.model, found.posterior, (x, y))
    assert nll == pytest.approx(rows["truth"].calibrated_nll, abs=5e-3)
    assert found.expected_nll == pytest.approx(rows["truth"].calibrated_nll)
    assert rows["truth"].nll == pytest.approx(
        pn.infer.predictive_nll(model, truth, (x, y)), rel=1e-5
    )


def test_nothing_is_chosen_that_adds_nothing(trained):
    model, _, x, y = trained
    found = pn.calibrate(model, (x, y), candidates={"strong noise": pn.guides.BatchNoise(model, 3)})
    assert found.name == "plain"
    assert found.candidates[1].difference > 0
    assert isinstance(found.posterior, pn.guides.Point)


def test_cross_fitting_by_hand(trained):
    model, _, x, y = trained
    guide = pn.guides.BatchNoise(model, 16)
    found = pn.calibrate(model, (x, y), candidates={"noise": guide}, num_samples=4, num_folds=3)
    row = found.candidates[1]
    with pn.randomness.seeded(0, model.network.like):
        folds = torch.randperm(300) % 3
        outputs = pn.predict(model, guide, x, 4).outputs
    total = 0.0
    for k in range(3):
        out = folds != k
        temperature = pn.diagnostics.fit_temperature(
            model.likelihood.predict(outputs[:, out]), y[out]
        )
        left = model.likelihood.predict(outputs[:, ~out]).tempered(temperature)
        total -= float(left.log_prob(y[~out]).sum())
    assert row.calibrated_nll == pytest.approx(total / 300, abs=1e-3)


def test_real_and_missing_values(trained):
    model, _, x, _ = trained
    model = pn.NormalizationModel(model.network, pn.likelihoods.Normal(0.1), 200)
    y = pn.predict(model, pn.guides.Point(model), x, 1).mean + 0.5 * torch.randn(300, 3)
    y[:20] = torch.nan
    found = pn.calibrate(model, (x, y), candidates={})
    assert found.num_examples == 280
    assert found.temperature == pytest.approx(5, rel=0.1)
    assert float(found.model.likelihood.temperature) == pytest.approx(found.temperature)


def test_standard_candidates_repeat_print_and_are_saved(trained, tmp_path):
    model, _, x, y = trained
    train = torch.randn(200, 5)
    before = torch.get_rng_state()
    one, two = (pn.calibrate(model, (x, y), train=train, num_samples=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.candidates == two.candidates
    names = [row.name for row in one.candidates]
    assert names[:3] == ["plain", "noise 4", "noise 8"]
    assert {"Monte-Carlo batch 64", "stochastic batch 32"} <= {*names}
    assert "Monte-Carlo batch 128" not in names  # of 200
    assert "<- chosen" in str(one)
    assert str(one).count("\n") == len(names) + 1
    assert "\n" not in repr(one)
    ax = one.plot()
    curves = {line.get_label(): line for line in ax.lines}
    assert curves["plain"].get_ydata()[0] == one.candidates[0].calibrated_nll
    sizes = [list(bars[0].get_xdata()) for bars in ax.containers]
    assert sizes[0] == [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    frame = one.to_dataframe()
    assert list(frame["name"][frame["chosen"]]) == [one.name]
    pn.save(tmp_path / "file", one.model, one.posterior)
    loaded, posterior = pn.load(tmp_path / "file", mlp())
    assert torch.equal(
        pn.predict(loaded, posterior, x, 1, seed=0).mean,
        pn.predict(one.model, one.posterior, x, 1, seed=0).mean,
    )


def test_networks_without_batch_statistics_have_the_law_alone():
    model = pn.NormalizationModel(
        pn.convert(mlp(), pn.normalizers.Layer()), pn.likelihoods.Categorical(), 20
    )
    x = torch.randn(60, 5)
    y = pn.predict(model, pn.guides.Point(model), x, 1).mean.argmax(-1)
    y[::3] = (y[::3] + 1) % 3
    found = pn.calibrate(model, (x, y), train=x, num_samples=2)
    assert all(row.name.startswith(("plain", "noise")) for row in found.candidates)


def test_what_cannot_be_is_refused_by_name(trained):
    model, _, x, y = trained
    with pytest.raises(DataError, match=r"calibrate: needs pairs"):
        pn.calibrate(model, x)
    with pytest.raises(DataError, match="5 folds need at least 10 examples, got 4"):
        pn.calibrate(model, (x[:4], y[:4]))
    with pytest.raises(OptionError, match="num_folds must be at least 2"):
        pn.calibrate(model, (x, y), num_folds=1)
    with pytest.raises(OptionError, match="candidate 'mine': expected a posterior"):
        pn.calibrate(model, (x, y), candidates={"mine": x})
    with pytest.raises(OptionError, match="another name"):
        pn.calibrate(model, (x, y), candidates={"plain": pn.guides.Point(model)})
    right = pn.predict(model, pn.guides.Point(model), x, 1).mean.argmax(-1)
    with pytest.raises(DataError, match="do not determine it"):
        pn.calibrate(model, (x, right), candidates={})
    fresh = pn.NormalizationModel(pn.convert(mlp()), pn.likelihoods.Categorical(), 20)
    with pytest.raises(StatisticsError):
        pn.calibrate(fresh, (x, y))


def test_data_that_would_not_be_used_are_refused(trained):
    model, _, x, y = trained
    with pytest.raises(ShapeError, match="got 300 inputs x and 5 targets y"):
        pn.calibrate(model, [(x, y[:5])])
    with pytest.raises(OptionError, match="train is for the candidates that are there without"):
        pn.calibrate(model, (x, y), train=x, candidates={"a": pn.guides.BatchNoise(model, 8)})
    with pytest.raises(DataError, match="train needs at least 16 examples for banks, got 4"):
        pn.calibrate(model, (x, y), train=x[:4], num_samples=2)


def test_learned_noise_is_judged_on_folds_that_it_has_not_seen(trained, monkeypatch):
    model, truth, x, y = trained
    found = []

    def learn(given, data, per, **_):
        assert given is model
        assert per == "layer"
        channels = model.space.num_channels
        scale = torch.full((1, channels), 1.0 + 0.2 * len(found))
        found.append((data, pn.Draws(torch.zeros(1, channels), scale)))
        return found[-1][1]

    monkeypatch.setattr(sys.modules["pyronorm.diagnostics.calibrate"], "learn_noise", learn)
    result = pn.calibrate(
        model, (x, y), candidates={"truth": truth}, learn="layer", num_folds=3, num_samples=1
    )
    assert [row.name for row in result.candidates] == ["plain", "truth", "noise learned per layer"]
    (everything, _), *parts = found
    assert torch.equal(everything[0], x)
    assert torch.equal(everything[1], y)
    terms, seen = [], torch.zeros(len(x))
    for (mine, targets), draws in parts:
        used = (x[:, None] == mine).all(-1).any(1)
        assert torch.equal(targets, y[used])
        log_p = pn.predict(model, draws, x).outputs[0].log_softmax(-1)[range(len(x)), y]
        terms.append(log_p[~used])
        seen += ~used
    assert bool((seen == 1).all())
    row = result.candidates[2]
    assert row.nll == pytest.approx(-torch.cat(terms).mean().item(), rel=1e-5)
