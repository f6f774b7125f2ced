from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from pyronorm.errors import OptionError
from pyronorm.infer.preparation import check_optimizer, check_others


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda groups: SGD([parameter()], lr=0.1), "has none of the parameters"),
        (lambda groups: SGD(groups, lr=0.1, maximize=True), "SGD maximizes, and fit minimizes"),
        (lambda groups: SGD(groups, lr=float("nan")), "learning rate of SGD must be finite"),
        (lambda groups: groups, "what optimizer makes must be a Optimizer"),
    ],
)
def test_optimizers_that_would_train_nothing_or_go_up_are_refused(make, says):
    groups = [{"name": "network", "params": [parameter()]}]
    with pytest.raises(OptionError, match=says):
        check_optimizer(make(groups), groups)
    check_optimizer(SGD(groups[0]["params"], lr=0.1), groups)


def test_a_callback_that_nobody_would_call_is_refused():
    class Later:
        def on_train_epoch_end(self, trainer):
            """A hook of Lightning's Trainer."""

    with pytest.raises(OptionError, match="Later has none of the methods that fit calls, which"):
        check_others([Later()], None, None, True)
