"""Jobs of a comparison, spied on from outside, against computations of their own."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm import datasets, guides, plots, priors
from pyronorm.datasets import ImageData
from pyronorm.infer.batch import MiniBatch
from pyronorm.infer.step import Step
from pyronorm.latents import Draws
from pyronorm.normalizers import Analytic, LatentNorm
from pyronorm.study import (
    METHODS,
    Comparison,
    Folder,
    Job,
    Outcome,
    Place,
    Results,
    Row,
    Settings,
    Training,
    comparison,
    format_table,
    restore_study,
    training,
    write_report,
)
from tests.processes import kill_again_and_again, runs_in

SEEDS = (3, 0)
SETTINGS = Settings(
    methods=("all",),
    seeds=SEEDS,
    num_train=430,
    num_test=90,
    training=Training(epochs=2, batch_size=40, lr=0.004),
    num_samples=3,
    bank_rows=13,
    arviz_samples=6,
)
STUDY = Comparison("digits", SETTINGS)
PLACE = Place(device="cpu")
SECONDS = {"bank": 7.0, "from_bank": 2.0, "predict": (5.0, 3.0, 4.0)}
BATCH = ("batch/point", "batch/mcbn", "batch/stochastic", "batch/bank-low-rank")
TRAININGS = [name for name in METHODS if METHODS[name].from_bank is None]
# All of the first seed, and enough of the second one.
JOBS = [
    job
    for job in STUDY.jobs()
    if job.seed == SEEDS[0] or job.name in ("batch/point", "weight/low-rank", "group/fixed")
]
# ArviZ data that are written; all are made.
WRITTEN = ("batch/point", "batch/mcbn", "weight/mean-field", "group/fixed")
ROWS = [(m.name, job.seed) for job in JOBS for m in METHODS.values() if m.training == job.name]


def images(seed: int) -> ImageData:
    return datasets.load("digits", seed).subset(430, 90, seed=seed)


@dataclass
class Calls:
    """What one job called, in order."""

    fits: list[SimpleNamespace] = field(default_factory=list)
    banks: list[SimpleNamespace] = field(default_factory=list)
    predictions: list[SimpleNamespace] = field(default_factory=list)
    centers: list[SimpleNamespace] = field(default_factory=list)
    judged: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    initial: list[dict[str, Tensor]] = field(default_factory=list)
    batches: list[Tensor] = field(default_factory=list)
    idatas: dict[str, Any] = field(default_factory=dict)


class Spy:
    """Notes the calls of each job."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: dict[Job, Calls] = {}
        self.job = STUDY.jobs()[0]
        self.now = 100.0
        for name in ("fit", "collect_bank", "predict", "classification_metrics", "convert"):
            patch.setattr(training, name, self._wrapped(name, getattr(training, name)))
        # A clock that only the calls move.
        patch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: self.now))
        methods = [replace(m, from_bank=self._timed(m.from_bank)) for m in METHODS.values()]
        patch.setattr(comparison, "choose_methods", lambda names: methods)
        step = Step.__call__

        def watched(own: Step, batch: MiniBatch, *args: Any, **options: Any) -> bool:
            self.calls[self.job].batches.append(batch.x)
            return step(own, batch, *args, **options)

        patch.setattr(Step, "__call__", watched)

    def begin(self, job: Job) -> None:
        self.job, self.calls[job] = job, Calls()

    def _timed(self, from_bank: Any) -> Any:
        def make(model: pn.NormalizationModel, bank: pn.StatisticsBank) -> guides.Guide:
            self.now += SECONDS["from_bank"]
            return from_bank(model, bank)

        return None if from_bank is None else make

    def _wrapped(self, name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls = self.calls[self.job]
            if name == "convert":
                calls.initial.append({k: v.clone() for k, v in args[0].state_dict().items()})
            result = function(*args, **options)
            noted = SimpleNamespace(args=args, options=options, result=result)
            if name == "fit":
                calls.fits.append(noted)
            elif name == "collect_bank":
                self.now += SECONDS["bank"]
                calls.banks.append(noted)
            elif name == "predict" and isinstance(args[1], Draws):
                calls.centers.append(noted)
            elif name == "predict":
                self.now += SECONDS["predict"][len(calls.predictions) % 3]
                calls.predictions.append(noted)
            elif name == "classification_metrics":
                calls.judged.append(args)
            return result

        return call


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Spy, Folder]:
    """The jobs, once for the whole file."""
    folder = Folder(tmp_path_factory.mktemp("comparison"))
    folder.start(STUDY, "pyronorm study digits")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        spy = Spy(patch)
        for job in JOBS:
            spy.begin(job)
            outcome = STUDY.run(job, PLACE)
            spy.calls[job].idatas = dict(outcome.idatas)
            written = {n: idata for n, idata in outcome.idatas.items() if n in WRITTEN}
            folder.write(STUDY, job, replace(outcome, idatas=written), 1.0)
    return folder.results(STUDY), spy, folder


@pytest.fixture(scope="module")
def results(watched: tuple[Results, Spy, Folder]) -> Results:
    return watched[0]


@pytest.fixture(scope="module")
def spy(watched: tuple[Results, Spy, Folder]) -> Spy:
    return watched[1]


def row_of(results: Results, method: str, seed: int) -> Row:
    (found,) = [row for row in results.rows if (row.method, row.seed) == (method, seed)]
    return found


def judged_of(calls: Calls) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]]:
    """What each method of a job was judged by, and its center, which a point has not."""
    found, rest = [], iter(calls.judged)
    for prediction in calls.predictions[::3]:
        main = next(rest)
        point = isinstance(prediction.args[1], guides.Point)
        found.append((main, None if point else next(rest)))
    assert next(rest, None) is None
    return found


# what comes back


def test_a_job_for_each_training_and_seed() -> None:
    assert STUDY.jobs() == [Job(name, seed) for seed in SEEDS for name in TRAININGS]
    few = Comparison("c", replace(SETTINGS, methods=("batch/mcbn", "batch/stochastic")))
    assert few.jobs() == [Job("batch/point", seed) for seed in SEEDS]


def test_one_row_per_seed_and_method(results: Results) -> None:
    assert [(row.method, row.seed) for row in results.rows] == ROWS
    assert [name for name, seed in ROWS if seed == SEEDS[0]] == list(METHODS)


@pytest.mark.parametrize(("name", "seed"), ROWS)
def test_every_method_learns(results: Results, name: str, seed: int) -> None:
    values = row_of(results, name, seed).values
    assert 0.15 < values["accuracy"] <= 1  # 0.1 by chance
    assert values["nll"] < math.log(10) - 0.05


def test_metrics_are_those_of_the_predictions(results: Results, spy: Spy) -> None:
    judged = [pair for job in JOBS for pair in judged_of(spy.calls[job])]
    assert len(judged) == len(results.rows)
    for row, ((probabilities, y), middle) in zip(results.rows, judged, strict=True):
        p = probabilities.double().numpy()
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        right = p.argmax(1) == y.numpy()
        confidence = p.max(1)
        ece = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence >= low) & (confidence < low + 1 / 15)
            if inside.any():
                ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        expected = {
            "accuracy": right.mean(),
            "nll": -np.log(p[np.arange(len(y)), y]).mean(),
            "ece": ece,
            "brier": ((p - np.eye(10)[y]) ** 2).sum(1).mean(),
        }
        if middle is not None:
            q = middle[0].double().numpy()
            expected["nll_center"] = -np.log(q[np.arange(len(y)), y]).mean()
        found = {k: v for k, v in row.values.items() if k not in ("predict_ms", "train_seconds")}
        assert 0 < found.pop("temperature") < 100
        assert found.pop("calibrated_nll") < expected["nll"] + 0.1  # cross-fitted
        assert 0 <= found.pop("calibrated_ece") < 1
        assert 0 <= found.pop("calibrated_brier") < 2
        assert 0 <= found.pop("aurc") <= 1 - found["accuracy"] + 0.1
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_center_is_one_draw_in_the_middle(spy: Spy) -> None:
    calls = spy.calls[Job("batch/point", SEEDS[0])]
    bank = calls.banks[0].result
    _, mcbn = calls.predictions[0], calls.centers[0]
    chains = mcbn.args[1]
    assert chains.shift.shape == (1, 16 + 32 + 32)
    # The bank has 13 rows; 256 draws of them come close to their mean.
    error = bank.shift.std(0) * 4 / 16
    assert bool(((chains.shift[0] - bank.shift.mean(0)).abs() <= error).all())
    error = bank.scale.log().std(0) * 4 / 16
    middle = bank.scale.log().mean(0)
    assert bool(((chains.scale[0].log() - middle).abs() <= error).all())


def test_predictions_are_kept_for_the_first_seed(results: Results, spy: Spy) -> None:
    y = images(SEEDS[0]).test.y.numpy()
    for job in JOBS:
        arrays = results.arrays[job]
        if job.seed != SEEDS[0]:
            assert list(arrays) == ["y"]
            continue
        np.testing.assert_array_equal(arrays["y"], y)
        kept = [array for name, array in arrays.items() if name != "y"]
        for array, ((probabilities, _), _) in zip(kept, judged_of(spy.calls[job]), strict=True):
            np.testing.assert_array_equal(array, probabilities.numpy())


# what methods share


def test_methods_of_one_seed_share_the_split(spy: Spy) -> None:
    for job, calls in spy.calls.items():
        data = images(job.seed)
        assert len(data.train.y) == 430
        (fit,) = calls.fits
        assert torch.equal(fit.args[2][0], data.train.x)
        assert torch.equal(fit.args[2][1], data.train.y)
        assert fit.args[0].num_data == 430
        for call in [*calls.predictions, *calls.centers]:
            assert torch.equal(call.args[2], data.test.x)
        assert all(torch.equal(y, data.test.y) for _, y in calls.judged)
    assert not torch.equal(images(3).train.x, images(0).train.x)


def test_methods_of_one_seed_share_the_initial_weights(spy: Spy) -> None:
    for seed in SEEDS:
        first, *others = [c.initial for job, c in spy.calls.items() if job.seed == seed]
        assert len(first) == 1
        for other in others:
            assert other[0].keys() == first[0].keys()
            assert all(torch.equal(other[0][key], first[0][key]) for key in first[0])
    a, b = (spy.calls[Job("batch/point", seed)].initial[0]["conv1.weight"] for seed in SEEDS)
    assert not torch.equal(a, b)


def test_methods_of_one_seed_share_budget_and_order_of_batches(spy: Spy) -> None:
    for seed in SEEDS:
        first, *others = [c.batches for job, c in spy.calls.items() if job.seed == seed]
        # 430 examples in batches of 40, twice: 10 full ones and one of 30.
        assert [len(x) for x in first] == ([40] * 10 + [30]) * 2
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_bank_methods_share_the_training_of_batch_point(spy: Spy) -> None:
    for job, calls in spy.calls.items():
        assert len(calls.banks) == (job.name == "batch/point")
        for bank in calls.banks:
            assert len(calls.predictions) == 3 * len(BATCH)
            # weights were not touched between the four
            assert len({id(call.args[0]) for call in [*calls.predictions, bank]}) == 1
            assert torch.equal(bank.args[1], images(job.seed).train.x)
            assert bank.args[2:] == (13, 40)
            assert len(bank.result) == 13
            assert bank.result.batch_size == 40


def test_seconds_of_training(results: Results, spy: Spy) -> None:
    for job, calls in spy.calls.items():
        base = calls.fits[0].result.seconds
        assert row_of(results, job.name, job.seed).values["train_seconds"] == base
    for seed in SEEDS:
        base = spy.calls[Job("batch/point", seed)].fits[0].result.seconds
        for name in BATCH[1:]:
            found = row_of(results, name, seed).values["train_seconds"]
            assert found == pytest.approx(base + SECONDS["bank"] + SECONDS["from_bank"], abs=1e-9)


def test_milliseconds_of_prediction_are_the_best_of_three_per_draw(
    results: Results, spy: Spy
) -> None:
    calls = [call for job in JOBS for call in spy.calls[job].predictions]
    assert len(calls) == 3 * len(results.rows)
    for position, row in enumerate(results.rows):
        draws = 1 if row.method.endswith("/point") else 3
        assert [c.args[3] for c in calls[3 * position : 3 * position + 3]] == [draws] * 3
        assert row.values["predict_ms"] == pytest.approx(3000 / draws)


def test_posteriors_of_the_bank(spy: Spy) -> None:
    for seed in SEEDS:
        calls = spy.calls[Job("batch/point", seed)]
        bank = calls.banks[0].result
        point, mcbn, stochastic, low_rank = (call.args[1] for call in calls.predictions[::3])
        assert isinstance(point, guides.Point)
        assert isinstance(mcbn, guides.MonteCarloBatchNorm)
        torch.testing.assert_close(mcbn.scale, bank.scale)
        assert isinstance(stochastic, guides.StochasticBatchNorm)
        torch.testing.assert_close(stochastic.log_scale_loc, bank.scale.log().mean(0))
        torch.testing.assert_close(stochastic.shift_std, bank.shift.std(0))
        assert isinstance(low_rank, guides.LowRank)
        rows = torch.cat([bank.shift, bank.scale.log()], -1)
        torch.testing.assert_close(low_rank.loc.data, rows.mean(0), rtol=1e-4, atol=1e-6)


# ArviZ


def test_arviz_data_are_of_the_first_seed(results: Results, spy: Spy) -> None:
    made = {job: list(calls.idatas) for job, calls in spy.calls.items()}
    assert [name for names in made.values() for name in names] == list(METHODS)
    assert all(job.seed == SEEDS[0] or not names for job, names in made.items())
    files = {n: f for found in results.arviz.values() for n, f in found.items()}
    assert tuple(files) == WRITTEN
    y = images(SEEDS[0]).test.y.numpy()
    for name in WRITTEN:
        idata = az.from_netcdf(str(files[name]))
        posterior = idata["posterior"]
        assert dict(posterior.sizes) == {"chain": 1, "draw": 6, "channel": 16 + 32 + 32}
        assert np.array_equal(idata["observed_data"]["y"].values, y)
        assert idata["log_likelihood"]["y"].shape == (1, 6, 90)
        assert posterior.attrs["seed"] == SEEDS[0]
        assert posterior.attrs["prior"] == repr(priors.BatchNoise(40))
        neutral = name.endswith("/point")
        assert bool((posterior["shift"].values == 0).all()) == neutral
        assert bool((posterior["scale"].values == 1).all()) == neutral


def test_arviz_draws_of_the_bank_are_its_rows(results: Results, spy: Spy) -> None:
    job = Job("batch/point", SEEDS[0])
    posterior = az.from_netcdf(str(results.arviz[job]["batch/mcbn"]))["posterior"]
    rows = spy.calls[job].banks[0].result.scale.numpy()
    drawn = posterior["scale"].values[0]
    assert all(any(np.allclose(draw, row) for row in rows) for draw in drawn)


# the same again


def test_seeds_decide_everything_whatever_else_is_compared(results: Results, spy: Spy) -> None:
    few = ("weight/low-rank", "batch/bank-low-rank", "batch/mcbn")
    study = Comparison("again", replace(SETTINGS, methods=few))
    for job in [Job("batch/point", 0), Job("weight/low-rank", 3), Job("batch/point", 3)]:
        torch.manual_seed(job.seed + 17)
        outcome = study.run(job, PLACE)
        assert {row.method for row in outcome.rows} == {
            m for m in few if METHODS[m].training == job.name
        }
        for row in outcome.rows:
            before = row_of(results, row.method, row.seed).values
            for name in ("accuracy", "nll", "nll_center", "ece", "brier"):
                assert row.values[name] == before[name]
        for name, array in outcome.arrays.items():
            np.testing.assert_array_equal(array, results.arrays[job][name])
        for name, idata in outcome.idatas.items():
            kept = spy.calls[job].idatas[name]
            for variable in ("shift", "scale"):
                np.testing.assert_array_equal(
                    idata["posterior"][variable].values, kept["posterior"][variable].values
                )


# the report


def test_relative_times_are_over_the_baseline_of_the_same_seed(results: Results) -> None:
    (section,) = STUDY.sections(results)
    (table,) = section.tables
    assert list(dict.fromkeys(row.method for row in table.rows)) == list(METHODS)
    assert len(table.rows) == len(ROWS)
    for row in table.rows:
        base = row_of(results, "batch/point", row.seed).values["train_seconds"]
        mine = row_of(results, row.method, row.seed).values["train_seconds"]
        assert row.values["relative_train_time"] == mine / base
    calibrated = [
        row_of(results, m, 0).values["calibrated_nll"] for m in ("group/fixed", "batch/point")
    ]
    difference = next(r for r in table.rows if (r.method, r.seed) == ("group/fixed", 0)).values[
        "difference"
    ]
    assert difference == calibrated[0] - calibrated[1]
    assert section.answer.startswith("**1 seed")
    assert table.words == {name: method.description for name, method in METHODS.items()}
    for words in ("430 training images", "2 epochs", "batch size 40", "n = 40", "of 13 training"):
        assert words in section.text


def test_without_the_baseline_there_are_no_relative_times(results: Results) -> None:
    study = Comparison("c", replace(SETTINGS, methods=("weight",)))
    rows = [row for row in results.rows if row.method.startswith("weight/")]
    table = study.sections(replace(results, rows=rows))[0].tables[0]
    headings = format_table(table).headings
    assert headings == [
        *("method", "accuracy", "NLL", "calibrated NLL", "ECE", "calibrated ECE"),
    ]
    details = format_table(replace(table, columns=table.details)).headings
    assert details == ["method", "NLL, no averaging", "Brier", "a draw, ms"]
    assert not study.sections(replace(results, rows=rows))[0].answer


def test_a_partial_folder_has_a_report(
    watched: tuple[Results, Spy, Folder], tmp_path: Path
) -> None:
    results, _, _ = watched
    folder = Folder(tmp_path)
    folder.start(STUDY, "")
    rows = [row for row in results.rows if row.method == "group/fixed" and row.seed == 0]
    folder.write(STUDY, Job("group/fixed", 0), Outcome(rows, {"y": np.array([1])}), 1.0)
    text = write_report(STUDY, tmp_path).read_text(encoding="utf-8")
    assert f"{2 * len(TRAININGS) - 1} of {2 * len(TRAININGS)} jobs have not been run yet" in text
    assert "plots/nll.png" in (tmp_path / "report.md").read_text(encoding="utf-8")


def shown(
    study: Comparison, results: Results, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """What each plotting function is given."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, Any]] = {}
    for name in ("plot_metric", "plot_reliability", "plot_posterior_scale"):
        monkeypatch.setattr(
            plots,
            name,
            lambda values, *args, name=name, **options: found.update({name: dict(values)}),
        )
    monkeypatch.setattr(az, "from_netcdf", Path)
    for plot in study.sections(results)[0].plots:
        plot.draw(Figure())
    return found


def test_what_the_plots_show(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(STUDY, results, monkeypatch)
    assert found["plot_metric"] == {
        name: [row_of(results, name, s).values["nll"] for n, s in ROWS if n == name]
        for name in METHODS
    }
    some = ["batch/point", "batch/mcbn", "weight/point", "weight/mean-field"]
    assert list(found["plot_reliability"]) == some
    for name, (p, y) in found["plot_reliability"].items():
        arrays = results.arrays[Job(METHODS[name].training, SEEDS[0])]
        np.testing.assert_array_equal(p.numpy(), arrays[name])
        np.testing.assert_array_equal(y.numpy(), arrays["y"])
    assert found["plot_posterior_scale"] == {
        name: results.arviz[Job(METHODS[name].training, SEEDS[0])][name]
        for name in WRITTEN
        if not name.endswith("/point")
    }


def test_plots_of_the_first_seed_are_of_no_other(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once seed 3 was the first, now it is the second.
    study = Comparison("digits", replace(SETTINGS, seeds=(0, 3)))
    found = shown(study, results, monkeypatch)
    assert set(found) == {"plot_metric"}


def test_the_report_of_all_methods(watched: tuple[Results, Spy, Folder]) -> None:
    _, _, folder = watched
    html = write_report(STUDY, folder.path).read_text(encoding="utf-8")
    assert {p.name for p in (folder.path / "plots").iterdir()} == {
        "nll.png",
        "reliability.png",
        "posterior-scale.png",
    }
    assert html.count("<img") == 3
    assert all(name in html for name in METHODS)


# how it trains, without training


class _StopError(Exception):
    pass


def first_fit(patch: pytest.MonkeyPatch, name: str, settings: Settings) -> SimpleNamespace:
    """What the training of a method is called with."""
    seen = SimpleNamespace()

    def fit(*args: Any, **options: Any) -> None:
        seen.model, seen.guide, seen.data = args
        seen.options = options
        raise _StopError

    patch.setattr(training, "fit", fit)
    with pytest.raises(_StopError):
        Comparison("c", settings).run(Job(name, settings.seeds[0]), PLACE)
    return seen


def test_settings_reach_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        seeds=(5,),
        training=Training(4, 48, 0.02, weight_decay=0.3, precision="bf16-mixed"),
        noise=20.0,
    )
    call = first_fit(monkeypatch, "weight/fixed", settings)
    expected = {
        "epochs": 4,
        "batch_size": 48,
        "seed": 5,
    }
    assert {k: call.options[k] for k in expected} == expected
    fabric = call.options["fabric"]
    assert fabric.device.type == "cpu"
    assert fabric._precision.precision == "bf16-mixed"
    assert call.guide.batch_size == 20
    assert repr(call.model.prior) == repr(priors.BatchNoise(20.0))
    assert isinstance(call.model.likelihood, pn.likelihoods.Categorical)
    assert len(call.data[1]) == 1437
    names = ("network", "likelihood", "guide")
    groups = [{"params": [nn.Parameter(torch.ones(2))], "name": name} for name in names]
    optimizer = call.options["optimization"].optimizer(groups)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.0]
    schedule = call.options["optimization"].scheduler(optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.02 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert rates == pytest.approx(cosine, abs=1e-12)


def test_weight_normalization_starts_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    call = first_fit(monkeypatch, "weight/point", Settings(seeds=(2,)))
    network = call.model.network.network
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


def test_analytic_normalization_has_the_moments_of_the_training_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []
    convert = training.convert

    def spied(network: nn.Module, normalizer: Any, **options: Any) -> nn.Module:
        given.append(normalizer)
        return convert(network, normalizer, **options)

    monkeypatch.setattr(training, "convert", spied)
    first_fit(monkeypatch, "analytic/point", Settings(seeds=(2,), num_train=100))
    x = datasets.load("digits", 2).subset(100, seed=2).train.x
    assert given == [Analytic.from_data(x)]


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    """Whatever the moment, what is finished stays, and the whole is that of a run never killed."""

    def command(output: Path) -> list[str]:
        return [
            *(sys.executable, "-c", "from pyronorm.cli import main; main()", "study", "digits"),
            *("--quick", "--methods", "batch,weight", "--seeds", "2", "--device", "cpu"),
            *("--output", str(output)),
        ]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert kill_again_and_again(command(killed), runs_in(killed), 5.0) >= 5
    subprocess.run(command(whole), check=True)
    restored = restore_study(Folder(whole).record)
    mine, theirs = (Folder(path).results(restored) for path in (killed, whole))
    for a, b in zip(mine.rows, theirs.rows, strict=True):
        assert (a.method, a.seed) == (b.method, b.seed)
        times = ("train_seconds", "predict_ms")
        assert {k: v for k, v in a.values.items() if k not in times} == {
            k: v for k, v in b.values.items() if k not in times
        }
    for job, arrays in theirs.arrays.items():
        assert all(np.array_equal(array, mine.arrays[job][name]) for name, array in arrays.items())
    for job, files in theirs.arviz.items():
        for name, file in files.items():
            one, other = (
                az.from_netcdf(str(f))["posterior"] for f in (file, mine.arviz[job][name])
            )
            for site in ("shift", "scale"):
                assert np.array_equal(one[site].values, other[site].values)
