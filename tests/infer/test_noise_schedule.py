from __future__ import annotations

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError
from tests.guides.cases import make_model


class Recorded(pn.guides.BatchNoise):
    """Writes down the law in force at each step."""

    def __init__(self, model, batch_size):
        super().__init__(model, batch_size)
        self.found = []

    def law(self):
        if self.training:
            self.found.append(self.batch_size)
        return super().law()


def warm_up(epoch):
    return 8 * 64 ** max(0.0, 1 - epoch / 2)


def data():
    return torch.randn(50, 5), torch.randint(3, (50,))


def test_the_law_at_each_step_is_what_was_said():
    model = make_model()
    guide = Recorded(model, 100)
    schedule = pn.NoiseSchedule(warm_up)
    pn.fit(
        model, guide, data(), epochs=3, batch_size=10, callbacks=[schedule], seed=0, progress=False
    )
    steps = [n for n in guide.found if n != 100]  # before training fit makes parameters
    assert steps == pytest.approx([warm_up(step / 5) for step in range(15)])
    assert steps[0] == pytest.approx(512)
    assert guide.batch_size == pytest.approx(8)


def test_it_goes_on_after_a_checkpoint(tmp_path):
    pairs = data()
    found = {}
    for name, epochs in (("whole", (3,)), ("parts", (1, 3))):
        for number in epochs:
            torch.manual_seed(0)
            model = make_model()
            guide = Recorded(model, 100)
            pn.fit(
                model, guide, pairs, epochs=number, batch_size=10, seed=0, progress=False,
                callbacks=[pn.NoiseSchedule(warm_up), pn.Checkpoint(tmp_path / name, resume=True)],
            )  # fmt: skip
        found[name] = guide.found[-5:]
    assert found["parts"] == found["whole"]


def test_what_cannot_be_is_refused():
    model = make_model()
    for guide in (pn.guides.EffectiveBatchSize(model), pn.guides.MeanField(model)):
        with pytest.raises(OptionError, match="has no batch size to set"):
            pn.fit(
                model, guide, data(), epochs=1, progress=False,
                callbacks=[pn.NoiseSchedule(warm_up)],
            )  # fmt: skip
    with pytest.raises(OptionError, match="NoiseSchedule: batch_size must be a finite number"):
        pn.fit(
            model, pn.guides.BatchNoise(model, 8), data(), epochs=1, progress=False,
            callbacks=[pn.NoiseSchedule(lambda epoch: 1.0)],
        )  # fmt: skip


def test_a_number_is_no_schedule(unchecked):
    with pytest.raises(OptionError, match="must be a function"):
        pn.NoiseSchedule(8)
