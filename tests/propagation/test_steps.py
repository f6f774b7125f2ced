from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.propagation.steps import Operation, Step, UnsupportedError, plain_name
from pyronorm.propagation.tracing import trace


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("add", "add"),
        ("add_", "add"),
        ("__add__", "add"),
        ("__iadd__", "add"),
        ("__radd__", "add"),
        ("__rsub__", "sub"),
        ("__itruediv__", "truediv"),
        ("relu_", "relu"),
        ("__getitem__", "getitem"),
        ("interpolate", "interpolate"),  # the first letter alone makes no operator
        ("__rpow__", "rpow"),
        (None, ""),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


class Net(nn.Module):
    """A convolution as a module, and one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, groups=2, bias=False)
        self.kernel = nn.Parameter(torch.randn(3, 6, 1))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x):
        x = self.conv(x)
        return F.conv1d(x, self.kernel * 1.0, self.shift) + F.conv1d(x, self.kernel, stride=1)


@pytest.fixture
def steps():
    network = Net()
    calls = [c for c in trace(network, torch.randn(2, 4, 7)).calls if c.inputs]
    made = [
        Step(
            call,
            Operation(lambda step, x: x),
            None if call.module is None else network.get_submodule(call.module),
            network,
            {"": network},
        )
        for call in calls
    ]
    return network, made


def test_options_of_a_module_are_its_attributes(steps):
    network, (conv, *_) = steps
    assert conv.name == "Conv1d"
    assert (conv.shape, conv.out_shape) == (torch.Size([2, 4, 7]), torch.Size([2, 6, 5]))
    assert conv.option(6, "groups", 1) == 2
    like = torch.empty(0, dtype=torch.float64)
    torch.testing.assert_close(conv.weight(like), network.conv.weight.double())
    assert conv.bias(like) is None


def test_options_of_a_function_are_its_arguments(steps):
    network, made = steps
    computed, plain = (step for step in made if step.name == "conv1d")
    like = torch.empty(0)
    assert plain.option(3, "stride", 9) == 1
    assert plain.option(6, "groups", 1) == 1
    assert plain.weight(like) is network.kernel
    assert computed.bias(like) is network.shift
    with pytest.raises(UnsupportedError, match="with a (computed )?weight"):
        computed.weight(like)


def test_a_missing_weight_is_refused(steps):
    _, made = steps
    add = next(step for step in made if step.name == "add")
    with pytest.raises(UnsupportedError, match="weight"):
        add.weight(torch.empty(0))
