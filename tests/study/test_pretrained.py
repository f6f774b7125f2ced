"""Posteriors for a trained network, on digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyronorm.errors import OptionError
from pyronorm.study import Job, Place, Results, Row, Table, Training
from pyronorm.study.pretrained import Pretrained, PretrainedSettings

SETTINGS = PretrainedSettings(
    data="digits",
    outliers="digits",
    seeds=(3, 1),
    num_train=300,
    num_validation=100,
    num_test=120,
    training=Training(4, 32),
    posterior_epochs=1,
    sizes=(8, 64),
    bank_sizes=(4, 16),
    members=2,
    bank_rows=12,
    num_samples=6,
)
FITTED = ("learned n", "mean field, noise only", "low rank, noise only", "mean field")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    study = Pretrained("pretrained", SETTINGS)
    return list(study.run(Job("pretrained", 3), Place(device="cpu")).rows)


def of(rows: list[Row], method: str, **condition: int) -> Row:
    (found,) = [r for r in rows if r.method == method and r.condition == condition]
    return found


def test_rows(rows: list[Row]) -> None:
    names = {row.method for row in rows if not row.condition}
    assert names == {
        *("plain", "stochastic BN", "temperature", "fixed law, n chosen", "MCBN, n chosen"),
        "fixed law, statistics per draw",
        *FITTED,
    }
    by_size = [(row.method, row.condition["n"]) for row in rows if "n" in row.condition]
    assert by_size == [("fixed law", 8), ("fixed law", 64), ("MCBN", 4), ("MCBN", 16)]
    # Images of a bank's batches are worth many values each.
    assert of(rows, "fixed law", n=8).values["values"] == 8
    assert (
        of(rows, "MCBN", n=16).values["values"]
        > 4 * of(rows, "MCBN", n=4).values["values"] / 2
        > 16
    )
    assert all(row.seed == 3 for row in rows)
    assert of(rows, "plain").values["accuracy"] > 0.7  # it was trained


def test_the_chosen_size_is_one_of_the_sizes(rows: list[Row]) -> None:
    for method in ("fixed law", "MCBN"):
        chosen = of(rows, f"{method}, n chosen")
        n = int(chosen.values["chosen"])
        same = of(rows, method, n=n)
        assert chosen.values["nll"] == same.values["nll"]
        assert chosen.values["seconds"] >= 0
    # On digits noise of 8 values ruins a network, so a sane choice takes the larger.
    assert of(rows, "fixed law, n chosen").values["chosen"] == 64


def test_noise_is_measured_in_the_network(rows: list[Row]) -> None:
    """The network was trained with batch statistics, so what it adds noise to is standardized."""
    for n in (8, 64):
        realized = of(rows, "fixed law", n=n).values["realized_noise"]
        assert realized == pytest.approx(n, rel=0.3)
    assert "realized_noise" not in of(rows, "plain").values


def test_statistics_of_each_draw_change_the_prediction(rows: list[Row]) -> None:
    neutral, refreshed = (
        of(rows, f"fixed law, {what}").values for what in ("n chosen", "statistics per draw")
    )
    assert refreshed["chosen"] == neutral["chosen"]
    assert refreshed["nll"] != neutral["nll"]
    assert refreshed["seconds"] > neutral["seconds"]


def test_the_network_is_the_first_of_the_ensembles(rows: list[Row]) -> None:
    one, two = (of(rows, "plain networks", networks=m).values["calibrated_nll"] for m in (1, 2))
    assert two < one
    assert of(rows, "plain").values["calibrated_nll"] == pytest.approx(one, abs=0.1)


def test_noise_ruins_more_with_small_n(rows: list[Row]) -> None:
    assert of(rows, "fixed law", n=8).values["nll"] > of(rows, "fixed law", n=64).values["nll"]


def test_a_temperature_changes_no_class_and_fits_the_validation_images(rows: list[Row]) -> None:
    scaled, plain = of(rows, "temperature"), of(rows, "plain")
    assert scaled.values["accuracy"] == plain.values["accuracy"]
    assert scaled.values["chosen"] > 0
    assert scaled.values["nll"] != plain.values["nll"]


def test_outliers_from_the_same_images_cannot_be_told(rows: list[Row]) -> None:
    # The outliers are the very test images.
    assert of(rows, "plain").values["auroc"] == pytest.approx(0.5, abs=0.01)


def test_fitting_takes_time_and_is_said(rows: list[Row]) -> None:
    for name in FITTED:
        assert 0 < of(rows, name).values["share"] < 10
    assert of(rows, "plain").values["seconds"] == 0
    assert of(rows, "learned n").values["chosen"] > 1


def test_sections(rows: list[Row], tmp_path: Path) -> None:
    study = Pretrained("pretrained", SETTINGS)
    results = Results(rows, {}, {}, {}, {})
    section, worth = study.sections(results)
    assert "- `plain`: " in worth.text
    assert section.answer.startswith("**1 seed answers nothing**")
    first, second = section.tables
    assert isinstance(first, Table)
    assert {row.method for row in first.rows} >= {"plain", "temperature", *FITTED}
    assert all("n" in row.condition for row in second.rows)
    assert "300 training images" in section.text
    assert "\n\n" in section.text
    (plot,) = section.plots
    from matplotlib.figure import Figure

    figure = Figure()
    plot.draw(figure)
    left, right = figure.axes
    assert len(left.lines) >= 3
    assert right.get_legend() is not None


def test_jobs_are_the_seeds() -> None:
    assert [job.seed for job in Pretrained("p", SETTINGS).jobs()] == [3, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"data": "nothing"},
        {"outliers": "nothing"},
        {"network": "nothing"},
        {"seeds": ()},
        {"num_validation": 0},
        {"sizes": (1,)},
        {"bank_sizes": (1,)},
        {"members": 0},
        {"bank_rows": 5},
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        PretrainedSettings(**options)  # type: ignore[arg-type]
