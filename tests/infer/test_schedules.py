from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, StepLR

from pyronorm.errors import OptionError
from pyronorm.infer import Optimization
from pyronorm.infer.schedules import Schedules


def made(**options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedules = Schedules(Optimization(**options), optimizer)
    optimizer.step()  # torch warns of schedulers that are stepped before
    return optimizer, schedules


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


def test_one_per_epoch_and_one_per_step():
    optimizer, schedules = made(
        scheduler=lambda o: StepLR(o, 1, 0.1), step_scheduler=lambda o: StepLR(o, 2, 0.5)
    )
    schedules.after_step()
    assert rate(optimizer) == 1
    schedules.after_step()
    assert rate(optimizer) == 0.5
    schedules.after_epoch(3.0)
    assert rate(optimizer) == pytest.approx(0.05)


def test_a_plateau_sees_the_loss():
    optimizer, schedules = made(scheduler=lambda o: ReduceLROnPlateau(o, patience=0))
    schedules.after_epoch(1.0)
    schedules.after_epoch(0.5)
    assert rate(optimizer) == 1
    schedules.after_epoch(0.6)
    assert rate(optimizer) == pytest.approx(0.1)


def test_none_changes_nothing():
    optimizer, schedules = made()
    schedules.after_step()
    schedules.after_epoch(1.0)
    assert rate(optimizer) == 1
    assert schedules.state_dict() == [None, None]


def test_states_go_on():
    options = {"scheduler": lambda o: LinearLR(o, 0.5, 1.0, 4)}
    optimizer, schedules = made(**options)
    other, fresh = made(**options)
    for _ in range(2):
        schedules.after_epoch(1.0)
    fresh.load_state_dict(schedules.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for each in (schedules, fresh):
        each.after_epoch(1.0)
    assert rate(other) == pytest.approx(rate(optimizer))


def test_a_scheduler_of_another_optimizer_is_refused():
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for wrong in (lambda _: StepLR(other, 1), lambda _: None):
        with pytest.raises(OptionError, match="must be one of the optimizer that its function is"):
            made(step_scheduler=wrong)
