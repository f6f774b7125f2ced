"""Ensembles, dropout and posteriors, on digits with digits turned upside down for outliers."""

from __future__ import annotations

import pytest
import torch

from pyronorm import datasets
from pyronorm.errors import OptionError
from pyronorm.study import Place, Results, Row, Training
from pyronorm.study.uncertainty_mnist import UncertaintyMNIST, UncertaintyMNISTSettings

METHODS = (
    *("batch/point", "batch/mcbn", "batch/stochastic", "ensemble", "ensemble, stochastic"),
    "batch/point, 2 times longer",
    *("dropout/point", "dropout/mc", "batch, dropout/point", "batch, dropout/mc"),
    *("batch, dropout/mc, stochastic", "weight/mean-field"),
)


@pytest.fixture(scope="module")
def found() -> Results:
    # Digits have 8x8 pixels; LeNet-5 takes 28x28.
    def load(name: str, seed: int = 0, data_root=None, **options) -> datasets.ImageData:
        data = datasets.load_digits(seed)
        train, test = (
            datasets.Split(torch.nn.functional.interpolate(x, (28, 28)), y)
            for x, y in (data.train, data.test)
        )
        if name == "notmnist":
            test = datasets.Split(test.x.flip(-1).transpose(-1, -2), test.y)
        return datasets.ImageData(name, train, test, 10)

    settings = UncertaintyMNISTSettings(
        methods=("weight/mean-field",),
        seeds=(4,),
        num_train=400,
        num_test=100,
        training=Training(4, 32, 5e-3),
        members=2,
        dropout=0.1,
        bank_rows=12,
        num_samples=6,
        corruptions=("rotation", "gaussian_noise"),
        severities=(1, 5),
        shift_images=40,
    )
    study = UncertaintyMNIST("uncertainty-mnist", settings)
    from pyronorm.study import images

    with pytest.MonkeyPatch.context() as patch:
        images._load.cache_clear()
        patch.setattr(datasets, "load", load)
        outcomes = {job: study.run(job, Place(device="cpu")) for job in study.jobs()}
        images._load.cache_clear()
    rows = [row for outcome in outcomes.values() for row in outcome.rows]
    arrays = {job: outcome.arrays for job, outcome in outcomes.items()}
    return Results(rows, arrays, {}, dict.fromkeys(outcomes, 1.0), {})


def of(found: Results, method: str) -> Row:
    (row,) = [row for row in found.rows if row.method == method and not row.condition]
    return row


def test_methods(found: Results) -> None:
    main = [row for row in found.rows if not row.condition]
    assert tuple(row.method for row in main) == METHODS
    for row in main:
        assert row.values["error"] == pytest.approx(100 * (1 - row.values["accuracy"]))
        assert row.values["accuracy"] > 0.4, row.method
        assert 0 < row.values["auroc"] <= 1


def test_dropout_draws_differ_from_its_mean(found: Results) -> None:
    assert of(found, "dropout/mc").values["nll"] != of(found, "dropout/point").values["nll"]
    both = [
        of(found, f"batch, dropout/{k}").values["nll"] for k in ("point", "mc", "mc, stochastic")
    ]
    assert len(set(both)) == 3


def test_an_ensemble_takes_the_time_of_its_members(found: Results) -> None:
    alone, together = (of(found, m).values["train_seconds"] for m in ("batch/point", "ensemble"))
    assert together > 1.2 * alone


def test_one_network_is_trained_longer(found: Results) -> None:
    alone, longer = (of(found, m).values for m in ("batch/point", "batch/point, 2 times longer"))
    assert longer["nll"] != alone["nll"]


def test_ensembles_of_every_size_are_judged(found: Results) -> None:
    curve = [row for row in found.rows if "networks" in row.condition]
    assert [row.condition["networks"] for row in curve] == [1, 2]
    nll = curve[1].values["calibrated_nll"]
    assert nll == pytest.approx(of(found, "ensemble").values["calibrated_nll"], abs=0.02)


def test_corrupted_images_are_judged_at_the_temperature_of_others(found: Results) -> None:
    for method in METHODS:
        mild, strong = [
            row.values for row in found.rows if row.method == method and "severity" in row.condition
        ]
        assert strong["error"] > mild["error"]
        temperature = of(found, method).values["temperature"]
        # Above 1 a temperature makes predictions less sure, and strong shift needs that.
        if temperature == 1:
            assert strong["shifted_nll"] == pytest.approx(strong["nll"], rel=1e-5)
        else:
            assert (strong["shifted_nll"] < strong["nll"]) == (temperature > 1)


def test_figures(found: Results) -> None:
    from matplotlib.figure import Figure

    settings = UncertaintyMNISTSettings(seeds=(4,))
    section, worth, shift = UncertaintyMNIST("uncertainty-mnist", settings).sections(found)
    assert "`ensemble`: 2.0" in worth.text, worth.text
    assert shift.tables[0].rows[0].condition == {"severity": 1}
    rejection, outliers = section.plots
    figure = Figure()
    rejection.draw(figure)
    assert len(figure.axes[0].lines) == 5
    figure = Figure()
    outliers.draw(figure)
    assert [axes.get_title() for axes in figure.axes] == [
        *("batch/point", "batch/stochastic", "ensemble", "dropout/mc", "weight/mean-field")
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"members": 1},
        {"num_samples": 2},
        {"outliers": "nothing"},
        {"corruptions": ("frost",)},
        {"severities": (0,)},
        {"shift_images": 0},
        {"methods": ("batch/mcbn",)},  # it would stand beside the ensemble's own
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        UncertaintyMNISTSettings(**options)  # type: ignore[arg-type]
