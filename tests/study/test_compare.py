"""Runs of a comparison, spied on from outside, against computations of their own."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm import datasets, guides, priors
from pyronorm.errors import OptionError
from pyronorm.layers import LatentNorm
from pyronorm.study import METHODS, Result, Settings, choose_methods, compare

# The package's attribute of this name is the function.
module = importlib.import_module("pyronorm.study.compare")

SEEDS = (3, 0)
SETTINGS = Settings(
    seeds=SEEDS,
    epochs=1,
    batch_size=50,
    num_samples=3,
    bank_rows=13,
    arviz_samples=6,
    device="cpu",
)
SECONDS = {"bank": 7.0, "from_bank": 2.0, "predict": (5.0, 3.0, 4.0)}
BATCH = ("batch/point", "batch/mcbn", "batch/stochastic", "batch/bank-low-rank")
TRAININGS = len(METHODS) - 3  # three posteriors come from the bank of batch/point


@dataclass
class Spy:
    """What the comparison called, in order."""

    fits: list[SimpleNamespace] = field(default_factory=list)
    banks: list[pn.StatisticsBank] = field(default_factory=list)
    bank_calls: list[tuple[Any, ...]] = field(default_factory=list)
    predictions: list[SimpleNamespace] = field(default_factory=list)
    judged: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    initial: list[dict[str, Tensor]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    batches: dict[str, list[Tensor]] = field(default_factory=dict)
    now: float = 100.0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fit", "collect_bank", "predict", "classification_metrics", "convert"):
            patch.setattr(module, name, self._wrapped(name, getattr(module, name)))
        # A clock that only the calls below move.
        patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))
        forward = pn.NormalizationModel.forward

        def watched(model: pn.NormalizationModel, x: Tensor, y: Tensor | None = None) -> Tensor:
            if model.training and y is not None:
                self.batches.setdefault(self.jobs[-1], []).append(x)
            return forward(model, x, y)

        patch.setattr(pn.NormalizationModel, "forward", watched)

    def methods(self) -> list[pn.study.Method]:
        def timed(from_bank):
            def make(model, bank):
                self.now += SECONDS["from_bank"]
                return from_bank(model, bank)

            return None if from_bank is None else make

        return [replace(m, from_bank=timed(m.from_bank)) for m in METHODS.values()]

    def _wrapped(self, name: str, function):
        def call(*args, **kwargs):
            if name == "convert":
                self.initial.append({k: v.clone() for k, v in args[0].state_dict().items()})
            result = function(*args, **kwargs)
            if name == "fit":
                self.fits.append(SimpleNamespace(args=args, options=kwargs, history=result))
            elif name == "collect_bank":
                self.now += SECONDS["bank"]
                self.banks.append(result)
                self.bank_calls.append(args)
            elif name == "predict":
                self.now += SECONDS["predict"][len(self.predictions) % 3]
                self.predictions.append(
                    SimpleNamespace(model=args[0], guide=args[1], x=args[2], draws=args[3])
                )
            elif name == "classification_metrics":
                self.judged.append(args)
            return result

        return call


@pytest.fixture(scope="module")
def watched() -> tuple[Result, Spy]:
    """Every method with two seeds, once for the whole file."""
    spy = Spy()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        spy.install(patch)
        result = compare(spy.methods(), SETTINGS, spy.jobs.append)
    return result, spy


@pytest.fixture(scope="module")
def result(watched: tuple[Result, Spy]) -> Result:
    return watched[0]


@pytest.fixture(scope="module")
def spy(watched: tuple[Result, Spy]) -> Spy:
    return watched[1]


def run_of(result: Result, method: str, seed: int) -> pn.study.Run:
    (found,) = [run for run in result.runs if (run.method, run.seed) == (method, seed)]
    return found


# what comes back


def test_one_run_per_seed_and_method(result: Result, spy: Spy) -> None:
    expected = [(method, seed) for seed in SEEDS for method in METHODS]
    assert [(run.method, run.seed) for run in result.runs] == expected
    assert spy.jobs == [f"{method}, seed {seed}" for method, seed in expected]
    assert result.settings is SETTINGS
    assert [method.name for method in result.methods] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(result: Result, name: str) -> None:
    for seed in SEEDS:
        run = run_of(result, name, seed)
        assert 0.3 < run.metrics["accuracy"] <= 1  # 0.1 by chance
        assert run.metrics["nll"] < math.log(10)
        assert run.train_seconds > 0
        assert run.predict_seconds > 0


def test_metrics_are_those_of_the_predictions(result: Result, spy: Spy) -> None:
    assert len(spy.judged) == len(result.runs)
    for run, (probabilities, y) in zip(result.runs, spy.judged, strict=True):
        p = probabilities.double().numpy()
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        truth = p[np.arange(len(y)), y]
        right = p.argmax(1) == y.numpy()
        one_hot = np.eye(10)[y]
        confidence = p.max(1)
        ece = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence >= low) & (confidence < low + 1 / 15)
            if inside.any():
                ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert run.metrics == pytest.approx(
            {
                "accuracy": right.mean(),
                "nll": -np.log(truth).mean(),
                "ece": ece,
                "brier": ((p - one_hot) ** 2).sum(1).mean(),
            },
            rel=1e-4,
            abs=1e-6,
        )


def test_predictions_are_kept_for_the_first_seed(result: Result, spy: Spy) -> None:
    assert list(result.predictions) == list(METHODS)
    y = datasets.load("digits", SEEDS[0]).test.y
    first = spy.judged[: len(METHODS)]
    for (kept, classes), (probabilities, _) in zip(result.predictions.values(), first, strict=True):
        assert torch.equal(kept, probabilities)
        assert torch.equal(classes, y)


# what methods share


def test_methods_of_one_seed_share_the_split(spy: Spy) -> None:
    jobs = [(seed, method) for seed in SEEDS for method in METHODS]
    for position, (seed, _) in enumerate(jobs):
        data = datasets.load("digits", seed)
        assert torch.equal(spy.judged[position][1], data.test.y)
        for call in spy.predictions[3 * position : 3 * position + 3]:
            assert torch.equal(call.x, data.test.x)
    trained = [seed for seed in SEEDS for _ in range(TRAININGS)]
    for seed, call in zip(trained, spy.fits, strict=True):
        data = datasets.load("digits", seed)
        assert torch.equal(call.args[2][0], data.train.x)
        assert torch.equal(call.args[2][1], data.train.y)
        assert call.args[0].num_data == len(data.train.y)


def test_methods_of_one_seed_share_the_initial_weights(spy: Spy) -> None:
    assert len(spy.initial) == 2 * TRAININGS
    for start in (0, TRAININGS):
        first, *others = spy.initial[start : start + TRAININGS]
        for other in others:
            assert all(torch.equal(other[key], first[key]) for key in first)
    assert not torch.equal(spy.initial[0]["conv1.weight"], spy.initial[TRAININGS]["conv1.weight"])


def test_methods_of_one_seed_share_the_budget(spy: Spy) -> None:
    steps = Counter(len(batches) for batches in spy.batches.values())
    # 1437 examples in batches of 50: 28 full ones and one of 37.
    assert steps == {29: 2 * TRAININGS}
    assert all([len(x) for x in b] == [50] * 28 + [37] for b in spy.batches.values())


def test_methods_of_one_seed_share_the_order_of_batches(spy: Spy) -> None:
    for seed in SEEDS:
        first, *others = [
            batches for job, batches in spy.batches.items() if job.endswith(f"seed {seed}")
        ]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_bank_methods_share_the_training_of_batch_point(spy: Spy) -> None:
    assert len(spy.fits) == 2 * TRAININGS
    assert len(spy.banks) == 2
    for block, bank_call in enumerate(spy.bank_calls):
        calls = spy.predictions[3 * len(METHODS) * block :][: 3 * len(BATCH)]
        assert len({id(call.model) for call in calls}) == 1
        # weights were not touched between the four
        assert bank_call[0] is calls[0].model
        assert torch.equal(bank_call[1], datasets.load("digits", SEEDS[block]).train.x)
        assert bank_call[2:] == (SETTINGS.bank_rows, SETTINGS.batch_size)
        assert len(spy.banks[block]) == SETTINGS.bank_rows
        assert spy.banks[block].batch_size == SETTINGS.batch_size


def test_seconds_of_training(result: Result, spy: Spy) -> None:
    trainings = [name for name in METHODS if METHODS[name].from_bank is None]
    for block, seed in enumerate(SEEDS):
        fits = spy.fits[len(trainings) * block :][: len(trainings)]
        for name, call in zip(trainings, fits, strict=True):
            assert run_of(result, name, seed).train_seconds == call.history.seconds
        base = fits[0].history.seconds
        for name in BATCH[1:]:
            found = run_of(result, name, seed).train_seconds
            assert found == pytest.approx(base + SECONDS["bank"] + SECONDS["from_bank"], abs=1e-9)


def test_seconds_of_prediction_are_the_best_of_three_per_draw(result: Result, spy: Spy) -> None:
    assert len(spy.predictions) == 3 * len(result.runs)
    for position, run in enumerate(result.runs):
        draws = 1 if run.method.endswith("/point") else SETTINGS.num_samples
        calls = spy.predictions[3 * position : 3 * position + 3]
        assert [call.draws for call in calls] == [draws] * 3
        assert run.predict_seconds == pytest.approx(3.0 / draws)


def test_posteriors_of_the_bank(spy: Spy) -> None:
    for block, bank in enumerate(spy.banks):
        calls = spy.predictions[3 * len(METHODS) * block :: 3][: len(BATCH)]
        point, mcbn, stochastic, low_rank = (call.guide for call in calls)
        assert isinstance(point, guides.Point)
        assert isinstance(mcbn, guides.BatchNoise)
        torch.testing.assert_close(mcbn.scale, bank.scale)
        assert isinstance(stochastic, guides.StochasticBatchNorm)
        torch.testing.assert_close(stochastic.log_scale_loc, bank.scale.log().mean(0))
        torch.testing.assert_close(stochastic.shift_std, bank.shift.std(0))
        assert isinstance(low_rank, guides.LowRank)
        rows = torch.cat([bank.shift, bank.scale.log()], -1)
        torch.testing.assert_close(low_rank.loc.data, rows.mean(0), rtol=1e-4, atol=1e-6)


# ArviZ


def test_arviz_data_are_of_the_first_seed(result: Result, spy: Spy) -> None:
    assert list(result.idatas) == list(METHODS)
    y = datasets.load("digits", SEEDS[0]).test.y.numpy()
    for position, (name, idata) in enumerate(result.idatas.items()):
        posterior = idata["posterior"]
        assert dict(posterior.sizes) == {"chain": 1, "draw": 6, "channel": 16 + 32 + 32}
        assert np.array_equal(idata["observed_data"]["y"].values, y), name
        assert idata["log_likelihood"]["y"].shape == (1, 6, 360)
        assert posterior.attrs["seed"] == SEEDS[0]
        assert posterior.attrs["method"] == type(spy.predictions[3 * position].guide).__name__
        assert posterior.attrs["prior"] == repr(priors.BatchNoise(SETTINGS.batch_size))
        assert list(dict.fromkeys(posterior["layer"].values)) == ["bn1", "bn2", "bn3"]


def test_arviz_draws_of_points_and_bank(result: Result, spy: Spy) -> None:
    for name in ("batch/point", "weight/point", "group/point"):
        posterior = result.idatas[name]["posterior"]
        assert (posterior["shift"].values == 0).all()
        assert (posterior["scale"].values == 1).all()
    drawn = result.idatas["batch/mcbn"]["posterior"]["scale"].values[0]
    rows = spy.banks[0].scale.numpy()
    assert all(any(np.allclose(draw, row) for row in rows) for draw in drawn)


# the same again


def test_seeds_decide_everything_whatever_else_is_compared(result: Result) -> None:
    again = compare(
        choose_methods(["weight/mean-field", "batch/bank-low-rank", "batch/mcbn"]), SETTINGS
    )
    assert len(again.runs) == 6
    for run in again.runs:
        assert run.metrics == run_of(result, run.method, run.seed).metrics
    for name, (probabilities, y) in again.predictions.items():
        assert torch.equal(probabilities, result.predictions[name][0])
        assert torch.equal(y, result.predictions[name][1])
    for name, idata in again.idatas.items():
        for variable in ("shift", "scale"):
            np.testing.assert_array_equal(
                idata["posterior"][variable].values,
                result.idatas[name]["posterior"][variable].values,
            )


# how it trains, without training


class _StopError(Exception):
    pass


def first_fit(patch: pytest.MonkeyPatch, name: str, settings: Settings | None) -> SimpleNamespace:
    """What the first training of a method is called with."""
    seen = SimpleNamespace()

    def fit(*args, **options):
        seen.model, seen.guide, seen.data = args
        seen.options = options
        raise _StopError

    patch.setattr(module, "fit", fit)
    with pytest.raises(_StopError):
        compare([METHODS[name]], settings)
    return seen


def test_settings_reach_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(seeds=(5,), epochs=4, batch_size=48, lr=0.02, device="cpu")
    call = first_fit(monkeypatch, "weight/fixed", settings)
    assert {k: call.options[k] for k in ("epochs", "batch_size", "device", "seed")} == {
        "epochs": 4,
        "batch_size": 48,
        "device": "cpu",
        "seed": 5,
    }
    assert call.guide.batch_size == 48
    assert repr(call.model.prior) == repr(priors.BatchNoise(48))
    assert isinstance(call.model.likelihood, pn.likelihoods.Categorical)
    weight = nn.Parameter(torch.ones(2))
    optimizer = call.options["optimizer"]([{"params": [weight]}])
    assert type(optimizer) is torch.optim.Adam
    schedule = call.options["scheduler"](optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.02 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert rates == pytest.approx(cosine, abs=1e-12)


def test_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    call = first_fit(monkeypatch, "batch/point", None)
    assert call.options["epochs"] == Settings().epochs == 15
    assert call.options["batch_size"] == Settings().batch_size == 64
    assert call.options["seed"] == 0


def test_weight_normalization_starts_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    call = first_fit(monkeypatch, "weight/point", Settings(seeds=(2,), device="cpu"))
    network = call.model.latent_network.network
    outputs: dict[str, Tensor] = {}
    for layer in network.modules():
        if isinstance(layer, LatentNorm):
            layer.register_forward_hook(
                lambda layer, args, output: outputs.update({layer.name: output})
            )
    with torch.no_grad():
        network(call.data[0][:512])
    assert set(outputs) == {"bn1", "bn2", "bn3"}
    for output in outputs.values():
        mean, std = output.mean((0, 2, 3)), output.std((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-3)


def test_nothing_to_compare() -> None:
    with pytest.raises(OptionError):
        compare([], SETTINGS)
