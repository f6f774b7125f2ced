"""Choices in training with noise: which networks are trained, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import pyronorm as pn
from pyronorm import guides
from pyronorm.errors import OptionError
from pyronorm.study import (
    Job,
    NoiseChoices,
    NoiseChoicesSettings,
    Place,
    Training,
    noise_networks,
)

SETTINGS = NoiseChoicesSettings(
    data="digits",
    normalizers=("batch", "weight"),
    regularizers=("weight decay and augmentation",),
    learning_rates=(1e-2,),
    warm_up=0.5,
    seeds=(3, 1),
    num_train=96,
    num_validation=40,
    num_test=40,
    training=Training(1, 32),
    num_samples=3,
    statistics_batches=1,
)
STUDY = NoiseChoices("choices", SETTINGS)
PLACE = Place(device="cpu")
pytestmark = pytest.mark.usefixtures("small_lenet")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is trained: training, options, and what came of it."""
    found: list[Any] = []
    train = noise_networks.train

    def spy(network: Any, normalizer: Any, make: Any, data: Any, training: Any, **o: Any) -> Any:
        trained = train(network, normalizer, make, data, training, **o)
        found.append((training, o, trained))
        return trained

    monkeypatch.setattr(noise_networks, "train", spy)
    return found


def methods(name: str) -> list[tuple[Any, ...]]:
    rows = STUDY.run(Job(name, 3), PLACE).rows
    assert all(0 < row.values["calibrated_nll"] < 10 for row in rows)
    return [(row.method, *row.condition.items()) for row in rows]


def test_what_several_questions_need_is_trained_once() -> None:
    names = [job.name for job in STUDY.jobs() if job.seed == 3]
    both = "weight decay and augmentation"
    assert names == [
        *("batch", "weight", "batch, n=8", "weight, n=8", "dropout, rate=0.1"),
        *("weight, n=8, relative", "weight, n=8, per example"),
        *("batch, n=8, shift only", "batch, n=8, scale only"),
        *("weight, n=8, shift only", "weight, n=8, scale only"),
        *("batch, n=8, warm-up", "weight, n=8, warm-up"),
        *(f"batch, {both}", f"batch, n=8, {both}", f"dropout, rate=0.1, {both}"),
        *("batch, lr=0.01", "batch, n=8, lr=0.01", "weight, n=8, lr=0.01"),
        *("dropout, rate=0.1, lr=0.01", "batch, SWAG, all weights"),
    ]
    assert len(STUDY.jobs()) == 2 * len(names)
    one = NoiseChoices("one", replace(SETTINGS, questions=("warm-up",)))
    assert [job.name for job in one.jobs() if job.seed == 3] == [
        *("batch", "batch, n=8", "batch, n=8, warm-up"),
        *("weight", "weight, n=8", "weight, n=8, warm-up"),
    ]


def test_relative_noise_realizes_its_n(made: list[Any]) -> None:
    assert methods("weight, n=8, relative") == [
        ("weight, noise relative",),
        ("weight, noise relative, no averaging",),
    ]
    _, _, trained = made[0]
    assert trained.model.network.standardization.mean is not None
    data = trained.images[:512]
    layers = pn.diagnostics.realized_noise(trained.model, trained.guide, data)
    assert all(layer.realized == pytest.approx(8.0, rel=0.3) for layer in layers)


@pytest.mark.parametrize("part", ["shift", "scale"])
def test_one_part_is_noisy(part: str, made: list[Any]) -> None:
    names = methods(f"batch, n=8, {part} only")
    assert names[0] == (f"batch, noise {part} only",)
    assert len(names) == 3  # without averaging, and with neutral statistics, too
    guide = made[0][2].guide
    assert isinstance(guide, guides.BatchNoise)
    assert (guide.shift, guide.scale) == (part == "shift", part == "scale")


def test_noise_grows(made: list[Any]) -> None:
    sizes: list[float] = []

    class Watch(pn.infer.Callback):
        def on_step_end(self, trainer: Any) -> None:
            sizes.append(trainer.guide.batch_size)

    train = noise_networks.train

    def watched(*args: Any, callbacks: Any, **options: Any) -> Any:
        assert isinstance(callbacks[0], pn.NoiseSchedule)
        assert callbacks[0].batch_size(0.0) == pytest.approx(8 * 64)
        return train(*args, callbacks=[*callbacks, Watch()], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_networks, "train", watched)
        methods("batch, n=8, warm-up")
    # Half an epoch of three steps.
    assert sizes == pytest.approx([8 * 64 ** (1 / 3), 8.0, 8.0])


def test_regularizers_rates_and_draws(made: list[Any]) -> None:
    both = "weight decay and augmentation"
    assert methods(f"dropout, rate=0.1, {both}")[0] == (f"dropout, {both}",)
    assert methods("batch, lr=0.01") == [("batch", ("lr", 0.01))]
    methods("weight, n=8, per example")
    trainings, options, _ = zip(*made, strict=True)
    assert [(t.weight_decay, t.augment, t.lr) for t in trainings] == [
        (SETTINGS.decay, True, 5e-3),
        (0.0, False, 1e-2),
        (0.0, False, 5e-3),
    ]
    assert [o["draws"] for o in options] == [1, 1, 32]


def test_swag_takes_the_rate_that_is_best_on_validation_images(made: list[Any]) -> None:
    (row,) = STUDY.run(Job("batch, SWAG, all weights", 3), PLACE).rows
    assert row.method == "batch SWAG, all weights"
    assert row.values["rate"] in noise_networks.SWAG_RATES
    assert row.values["passes"] == SETTINGS.num_samples
    assert row.values["train_seconds"] > made[0][2].seconds


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"questions": ("why",)}, "why"),
        ({"normalizers": ("weight", "batch")}, "batch and at least one other"),
        ({"normalizers": ("batch",)}, "at least one other"),
        ({"normalizers": ("batch", "layer")}, "layer"),
        ({"regularizers": ("early stopping",)}, "early stopping"),
        ({"regularizers": ()}, "needs at least one of regularizers"),
        ({"learning_rates": ()}, "needs at least one of learning_rates"),
        ({"learning_rates": (2e-3,)}, "Leave it out"),
        ({"noise": 1.0}, "noise"),
        ({"dropout": 0.0}, "dropout"),
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        NoiseChoicesSettings(**options)
