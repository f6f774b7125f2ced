from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyronorm.errors import OptionError
from pyronorm.infer.options import Objective, Optimization, Validation, needs_closure


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2))


@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense_is_refused():
    for bad in (-1.0, 0.0, float("inf"), float("nan"), "1", True):
        with pytest.raises(OptionError, match="gradient_clip_norm must be a finite number above 0"):
            Optimization(gradient_clip_norm=bad)
    for bad in (0, 1.5, None):
        with pytest.raises(OptionError, match="accumulate must be at least 1, an integer"):
            Optimization(accumulate=bad)
    for bad in (torch.optim.Adam([parameter()]), pyro.optim.Adam({"lr": 0.1}), 3):
        with pytest.raises(
            OptionError, match="optimizer must be a function that makes a torch opt"
        ):
            Optimization(optimizer=bad)
    with pytest.raises(OptionError, match="num_samples must be at least 1, an integer, got 0"):
        Validation([], num_samples=0)
    with pytest.raises(OptionError, match="elbo must be an object .* got the class Trace_ELBO"):
        Objective(elbo=Trace_ELBO)
    for bad in (-1.0, float("nan"), "1", True):
        with pytest.raises(OptionError, match="kl_weight must be at least 0 and finite"):
            Objective(kl_weight=bad)


def test_weights_follow_their_schedule():
    assert Objective(kl_weight=0.5).weight(3.0) == 0.5
    schedule = Objective(kl_weight=lambda epoch: epoch - 1)
    assert schedule.weight(1.25) == 0.25
    with pytest.raises(OptionError, match="got -0.5"):
        schedule.weight(0.5)


def test_optimizers_that_evaluate_the_loss_themselves():
    assert needs_closure(torch.optim.LBFGS([parameter()]))
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        assert not needs_closure(kind([parameter()], lr=0.1))


def test_validation_does_not_print_its_data():
    assert repr(Validation(torch.zeros(3))) == "Validation(num_samples=8)"
