"""What batch size does, on digits."""

from __future__ import annotations

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError
from pyronorm.study import Job, Place, Row, Training
from pyronorm.study.batch_size import BatchSize, BatchSizeSettings, _LayerNoise

SETTINGS = BatchSizeSettings(
    data="digits",
    seeds=(2,),
    num_train=320,
    num_test=100,
    training=Training(2, 32, 4e-3),
    batch_sizes=(4, 64),
    groups=(1, 16),
    whitening_groups=(4,),
    bank_rows=40,
    num_samples=6,
    disturbance_images=64,
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    study = BatchSize("batch-size", SETTINGS)
    return [row for job in study.jobs() for row in study.run(job, Place(device="cpu")).rows]


def of(rows: list[Row], method: str, **condition: int) -> Row:
    found = [
        r
        for r in rows
        if r.method == method and tuple(r.condition.values()) == tuple(condition.values())
    ]
    assert len(found) == 1
    return found[0]


def test_jobs() -> None:
    names = [job.name for job in BatchSize("batch-size", SETTINGS).jobs()]
    assert names == ["n=4", "n=64", "group=1", "group=16", "whitening=4"]


def test_small_batches_are_noisier(rows: list[Row]) -> None:
    small, large = (of(rows, "batch, evaluation mode", n=n).values for n in (4, 64))
    assert small["n_eff"] < large["n_eff"] / 4
    assert small["n_eff_scale"] < large["n_eff_scale"] / 4
    # Noise falls with the root of the batch size: a factor of 4 here, measured by few draws.
    assert 2 < small["disturbance"] / large["disturbance"] < 8
    assert small["gap"] == pytest.approx(small["nll"] - small["batch_nll"], abs=0.02)


def test_explicit_noise_is_judged_beside_the_batch_it_was_measured_in(rows: list[Row]) -> None:
    for n in (4, 64):
        assert of(rows, "weight, matched noise", n=n).values["nll"] > 0
        assert of(rows, "batch, MCBN", n=n).values["nll"] > 0
        assert of(rows, "weight, no noise", n=n).values["accuracy"] > 0.3
    small, large = (
        of(rows, "weight, matched noise", n=n).values["realized_noise"] for n in (4, 64)
    )
    assert small < large / 4
    assert "realized_noise" not in of(rows, "weight, no noise", n=4).values


def test_matched_noise_has_the_law_of_each_layer() -> None:
    model = pn.NormalizationModel(
        pn.convert(pn.networks.SmallConvNet(width=4)), pn.likelihoods.Categorical(), num_data=10
    )
    sizes = (20.0, 300.0, 50.0), (9.0, 80.0, 30.0)
    draws = pn.guides.Fixed(model, _LayerNoise(*sizes)).draw(model, 20_000, seed=1)
    for layer, n_shift in zip(draws.shift.split(model.space.sizes, 1), sizes[0], strict=True):
        assert float(layer.var()) == pytest.approx(1 / n_shift, rel=0.05)
    for layer, n_scale in zip(draws.scale.split(model.space.sizes, 1), sizes[1], strict=True):
        squares = layer.double() ** -2
        assert float(squares.mean()) == pytest.approx((n_scale - 1) / n_scale, rel=0.01)
        assert float(squares.log().var()) == pytest.approx(
            float(torch.polygamma(1, torch.tensor((n_scale - 1) / 2))), rel=0.05
        )


def test_more_groups_are_more_constraints(rows: list[Row]) -> None:
    one, sixteen = (of(rows, "group", g=g).values["constraints"] for g in (1, 16))
    assert sixteen == pytest.approx(16 * one)
    # The last layers normalize 32 channels of 4x4 positions: 2 constraints per group of 512 values.
    assert one == pytest.approx(2 / 512)


def test_one_seed_decides(rows: list[Row]) -> None:
    study = BatchSize("batch-size", SETTINGS)
    (again,) = study.run(Job("group=16", 2), Place(device="cpu")).rows
    assert again.values == of(rows, "group", g=16).values


@pytest.mark.parametrize(
    "options",
    [{"batch_sizes": (1,)}, {"disturbance_images": 1}, {"bank_rows": 19}],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        BatchSizeSettings(**options)  # type: ignore[arg-type]
