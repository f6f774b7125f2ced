"""What looks on while a model is trained, without a model that is trained."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyronorm.errors import OptionError
from pyronorm.infer.callbacks import Callback, EarlyStopping, Progress
from pyronorm.infer.history import Epoch, History


class Run:
    """As much of a trainer as callbacks look at: its parameters are the number of the epoch."""

    def __init__(self, validation=True):
        self.validation = object() if validation else None
        self.history = History()
        self.model, self.guide = nn.Linear(1, 1), nn.Linear(1, 1)
        self.stopped = False
        self.epochs, self.epochs_done, self.loss = 3, 0.0, 1.25
        self.fabric = SimpleNamespace(is_global_zero=True)

    def stop(self):
        self.stopped = True

    def epoch(self, callback, nll):
        number = len(self.history.epochs) + 1
        for module in (self.model, self.guide):
            nn.init.constant_(module.weight, number)
        self.history.epochs.append(Epoch(number, 1.0, 1.0, 1e-3, 0.1, nll))
        callback.on_epoch_end(self)
        return self.stopped


def test_stops_after_so_many_epochs_and_puts_the_best_back():
    run, callback = Run(), EarlyStopping(2)
    callback.on_fit_start(run)
    assert [run.epoch(callback, nll) for nll in (3.0, 1.0, 2.0, 1.0)] == [False] * 3 + [True]
    assert run.history.best_epoch == 2
    callback.on_fit_end(run)
    assert run.model.weight.item() == run.guide.weight.item() == 2


@pytest.mark.parametrize("nll", [math.nan, math.inf, None])
def test_an_nll_that_is_none_is_no_better(nll):
    run, callback = Run(), EarlyStopping(2)
    callback.on_fit_start(run)
    assert [run.epoch(callback, value) for value in (2.0, nll, nll)] == [False, False, True]
    assert run.history.best_epoch == 1


def test_an_interruption_puts_the_best_back_too():
    run, callback = Run(), EarlyStopping(5)
    callback.on_fit_start(run)
    run.epoch(callback, 1.0)
    run.epoch(callback, 2.0)
    callback.on_exception(run, KeyboardInterrupt())
    assert run.model.weight.item() == 1


def test_without_any_epoch_nothing_is_put_back():
    run, callback = Run(), EarlyStopping(5)
    callback.on_fit_start(run)
    before = run.model.weight.item()
    callback.on_fit_end(run)
    assert run.model.weight.item() == before


def test_another_run_begins_anew_and_a_longer_one_goes_on():
    callback = EarlyStopping(1)
    first = Run()
    callback.on_fit_start(first)
    first.epoch(callback, 0.5)
    callback.on_fit_start(first)  # more epochs of the same run
    assert first.epoch(callback, 0.9)
    second = Run()
    callback.on_fit_start(second)
    assert not second.epoch(callback, 0.9)
    assert second.history.best_epoch == 1


def test_a_stored_state_goes_on():
    run, callback = Run(), EarlyStopping(2)
    callback.on_fit_start(run)
    run.epoch(callback, 1.0)
    stored = copy.deepcopy(callback.state_dict())
    other = EarlyStopping(2)
    other.load_state_dict(stored)
    assert not run.epoch(other, 1.5)
    assert run.epoch(other, 1.5)
    other.on_fit_end(run)
    assert run.model.weight.item() == 1


def test_refusals():
    with pytest.raises(OptionError, match="EarlyStopping: fit needs validation="):
        EarlyStopping(3).on_fit_start(Run(validation=False))
    for patience in (0, -2, True):
        with pytest.raises(OptionError, match="patience must be at least 1, an integer"):
            EarlyStopping(patience)


def test_a_callback_does_nothing_by_itself():
    run, callback = Run(), Callback()
    before = copy.deepcopy(run.model.state_dict())
    for method in ("on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"):
        assert getattr(callback, method)(run) is None
    assert callback.on_exception(run, ValueError()) is None
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())


def test_the_bar_says_epoch_and_loss():
    run, bar = Run(), Progress()
    bar.on_step_end(run)  # before it begins: nothing to show
    bar.on_fit_start(run)
    run.epochs_done = 1.5
    bar.on_step_end(run)
    shown = bar._bar
    assert (shown.what, shown.done, shown.total) == ("epoch 2/3  loss 1.2500", 1.5, 3)
    run.epoch(bar, None)
    assert (shown.what, shown.done) == ("epoch 1/3  loss 1.0000", 1)  # of the epoch
    run.epochs_done = 3.0
    bar.on_step_end(run)
    assert shown.what.startswith("epoch 3/3")
    bar.on_exception(run, ValueError())
    bar.on_fit_end(run)  # once is enough


def test_one_process_shows_a_bar():
    run, bar = Run(), Progress()
    run.fabric.is_global_zero = False
    bar.on_fit_start(run)
    run.epoch(bar, None)
    assert bar._bar is None
