from __future__ import annotations

import contextlib
import copy
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.errors import ConversionError
from pyronorm.normalizers import LatentNorm, Population, Weight
from pyronorm.propagation.tracing import Call, Parameter, Trace, Value, leaves, trace
from tests.nets import ResNet, conv_net, train_briefly

X = torch.randn(2, 4, 5, 6)


class Net(nn.Module):
    """Layers that a test wires as it wants."""

    def __init__(self, wire) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.act = nn.ReLU(inplace=True)
        self.gain = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.register_buffer("offset", torch.rand(1, 4, 1, 1))
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


def names(calls: Trace) -> list[str]:
    return [call.module if call.module is not None else call.function for call in calls.calls]


FUNCTIONS = {
    "relu function": (lambda n, x: F.relu(x), "relu"),
    "torch relu": (lambda n, x: torch.relu(x), "relu"),
    "method": (lambda n, x: x.relu(), "relu"),
    "in place method": (lambda n, x: x.relu_(), "relu_"),
    "in place option": (lambda n, x: F.relu(x, inplace=True), "relu"),
    "sum": (lambda n, x: x + 1, "add"),
    "reflected difference": (lambda n, x: 1 - x, "__rsub__"),
    "reflected quotient": (lambda n, x: 1 / x, "__rdiv__"),
    "operator module": (lambda n, x: operator.mul(x, 2.0), "mul"),
    "index": (lambda n, x: x[:, 1:], "__getitem__"),
    "property": (lambda n, x: x.mT, "mT"),
    "dispatched by torch": (lambda n, x: F.max_pool2d(x, 2), "max_pool2d"),
    "of the C library": (lambda n, x: F.gelu(x), "gelu"),
    "overload": (lambda n, x: torch.ops.aten.relu.default(x), "relu.default"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_are_named(case):
    wire, name = FUNCTIONS[case]
    calls = trace(Net(wire), X)
    assert names(calls) == [name]
    (call,) = calls.calls
    assert call.module is None
    assert call.place == ""
    assert call.inputs == (calls.inputs[0],)
    assert call.outputs == calls.outputs
    assert call.describe() == f"operation {name!r}"
    assert pickle.loads(pickle.dumps(call)).function == name
    assert copy.deepcopy(call).inputs == call.inputs


def test_augmented_assignment_makes_a_new_value():
    def wire(n, x):
        y = n.conv(x)
        y += 1
        return n.norm(y)

    calls = trace(Net(wire), X)
    conv, add, norm = calls.calls
    assert (conv.module, norm.module) == ("conv", "norm")
    assert add.inputs == conv.outputs
    assert norm.inputs == add.outputs
    assert add.outputs != conv.outputs
    assert calls.producer(norm.inputs[0]) is add
    assert calls.producer(calls.inputs[0]) is None
    assert calls.uses(conv.outputs[0]) == 1
    assert calls.uses(norm.outputs[0]) == 1  # returned
    assert calls.of_module("norm") == [norm]
    assert calls.of_module("nothing") == []


def test_arguments_options_and_shapes():
    calls = trace(Net(lambda n, x: F.max_pool2d(torch.cat([x, n.conv(x)], dim=1), (2, 3))), X)
    conv, cat, pool = calls.calls
    assert cat.args == ((calls.inputs[0], conv.outputs[0]),)
    assert cat.kwargs == {"dim": 1}
    assert cat.inputs == (calls.inputs[0], conv.outputs[0])
    assert cat.outputs[0].shape == (2, 8, 5, 6)
    assert pool.args[1] == (2, 3)
    assert pool.outputs[0] == Value(pool.outputs[0].number, torch.Size((2, 8, 2, 2)), torch.float32)
    assert calls.inputs[0] == Value(1, X.shape, X.dtype)


def test_parameters_and_buffers_are_named():
    net = Net(lambda n, x: F.conv2d(x, n.inner.weight, bias=n.conv.bias) * n.gain + n.offset)
    net.inner = nn.Conv2d(4, 4, 1)
    conv, mul, add = trace(net, X).calls
    assert conv.args[1] == Parameter("inner", "weight")
    assert conv.kwargs["bias"] == Parameter("conv", "bias")
    assert mul.args[1] == Parameter("", "gain")
    assert add.args[1] == Parameter("", "offset")


def test_a_cast_that_changes_nothing_leaves_a_parameter_a_parameter():
    mul, again = trace(Net(lambda n, x: x * n.gain.to(x.dtype) * n.gain), X).calls
    assert mul.args[1] == again.args[1] == Parameter("", "gain")


def test_hooks_of_the_network_are_written_down():
    net = Net(lambda n, x: n.norm(n.conv(x)))
    net.conv.register_forward_hook(lambda m, args, y: y * 2)
    net.norm.register_forward_pre_hook(lambda m, args: (args[0].tanh(),))
    net.register_forward_hook(lambda m, args, y: y.exp())
    assert names(trace(net, X)) == ["conv", "mul", "tanh", "norm", "exp"]


def test_parametrized_layers_are_one_call():
    net = Net(lambda n, x: n.norm(n.conv(x)))
    nn.utils.parametrizations.weight_norm(net.conv)
    assert names(trace(net, X)) == ["conv", "norm"]


class Standardized(nn.Conv2d):
    """A public structure: the weight is standardized before the convolution."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, self.weight - mean, self.bias, padding=self.padding)


class Hidden(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class MyReLU(nn.ReLU):
    def forward(self, x):
        return F.relu(x) + 1


def patched():
    module = nn.ReLU()
    module.forward = lambda x: F.relu(x) - 1
    return module


@pytest.mark.parametrize(
    ("module", "last"),
    [
        (Standardized(4, 4, 3), "conv2d"),
        (Hidden(4, 4, 3), "conv2d"),
        (MyReLU(), "add"),
        (patched(), "sub"),
    ],
)
def test_what_a_subclass_computes_is_looked_into(module, last):
    calls = trace(nn.Sequential(module), X)
    assert not calls.of_module("0")
    assert names(calls)[-1] == last
    assert calls.calls[-1].place == "0"
    assert calls.calls[-1].describe() == f"operation {last!r} in '0'"


class Own(nn.Linear):
    """A subclass that computes the same."""


def test_a_subclass_with_torchs_forward_is_one_call():
    assert names(trace(nn.Sequential(Own(4, 3)), torch.randn(2, 4))) == ["0"]


@pytest.mark.parametrize("hand_on", [lambda x: x.contiguous(), lambda x: x.float(), nn.Identity()])
def test_what_hands_on_its_input_is_not_a_call(hand_on):
    calls = trace(Net(lambda n, x: (h := n.conv(x)) + hand_on(h)), X)
    conv, add = calls.calls
    assert add.inputs == conv.outputs * 2


@pytest.mark.parametrize("drop", [lambda n, x: n.drop(x), lambda n, x: F.dropout(x, 0.3, False)])
def test_dropout_hands_on_its_input_only_in_evaluation_mode(drop):
    calls = trace(Net(lambda n, x: drop(n, x) * n.conv(x)), X)
    dropout, conv, mul = calls.calls
    assert conv.inputs == dropout.inputs == (calls.inputs[0],)
    assert mul.inputs == (*dropout.outputs, *conv.outputs)


def test_modules_that_work_in_place():
    def wire(n, x):
        y = n.conv(x)
        n.act(y)  # the result is not even taken
        return y

    conv, act = trace(Net(wire), X).calls
    assert act.inputs == conv.outputs
    calls = trace(Net(wire), X)
    assert calls.outputs == calls.calls[-1].outputs


VIEWS = {
    "of a view": lambda n, x: (x.flatten(2).relu_(), n.conv(x))[1],
    "by a module": lambda n, x: (n.act(x.flatten(2)), n.conv(x))[1],
    "of the base": lambda n, x: (v := x.flatten(2), x.relu_(), torch.sigmoid(v))[2],
    "of a detached": lambda n, x: (x.detach().relu_(), n.conv(x))[1],
    "of a part": lambda n, x: (x[:, :2].mul_(2), n.conv(x))[1],
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_change_in_place_through_another_view_is_a_call(case):
    calls = trace(Net(VIEWS[case]), X)
    change = calls.producer(calls.calls[-1].inputs[0])
    assert change.function == "change in place through another view"


def test_setitem_makes_a_new_value():
    def wire(n, x):
        y = n.conv(x)
        y[:, 0] = x[:, 1]
        return n.norm(y)

    conv, index, setitem, norm = trace(Net(wire), X).calls
    assert setitem.function == "__setitem__"
    assert setitem.inputs == (*conv.outputs, *index.outputs)
    assert norm.inputs == setitem.outputs != conv.outputs


def test_several_outputs():
    calls = trace(Net(lambda n, x: n.conv(torch.cat(x.chunk(2, 1)[::-1], 1))), X)
    chunk, cat, _ = calls.calls
    assert [v.shape for v in chunk.outputs] == [(2, 2, 5, 6)] * 2
    assert cat.inputs == chunk.outputs[::-1]
    assert calls.producer(chunk.outputs[1]) is chunk


def test_networks_that_return_several_tensors():
    calls = trace(Net(lambda n, x: {"a": n.conv(x), "b": [x, None, 3]}), X)
    assert calls.outputs == (*calls.calls[0].outputs, calls.inputs[0])


READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("case", READS)
def test_reading_numbers_is_a_call_without_outputs(case):
    calls = trace(Net(lambda n, x: (READS[case](x), n.conv(x))[1]), X)
    reads = [call for call in calls.calls if not call.outputs]
    assert len(reads) == 1
    assert len(reads[0].inputs) > 0


def test_looking_at_shapes_is_no_call():
    def wire(n, x):
        assert x.shape[0] == x.size(0) == len(x)
        assert x.is_floating_point()
        assert x.dim() == 4
        assert not x.is_cuda
        return n.conv(x).view(x.shape[0], -1)

    assert names(trace(Net(wire), X)) == ["conv", "view"]


def test_places_are_the_modules_whose_code_calls():
    network = nn.Sequential(nn.Sequential(Net(lambda n, x: F.relu(n.conv(x)))), nn.Flatten())
    network.append(MyReLU())
    calls = {(call.place, call.function or call.module) for call in trace(network, X).calls}
    assert calls == {("0.0", "0.0.conv"), ("0.0", "relu"), ("", "1"), ("2", "relu"), ("2", "add")}


def test_modules_of_torch_are_not_looked_into():
    net = Net(lambda n, x: n.act(n.norm(n.conv(x))))
    assert names(trace(net, X)) == ["conv", "norm", "act"]
    calls = trace(nn.Sequential(net), X, whole=["0"])
    assert names(calls) == ["0"]  # taken as a whole, with all that is in it
    assert calls.calls[0].inputs == (calls.inputs[0],)


def test_latent_layers_are_one_call():
    network = nn.Sequential(
        LatentNorm(Population(), 4), LatentNorm(Weight(), 3, parts={"linear": nn.Conv2d(4, 3, 1)})
    )
    assert names(trace(network, X)) == ["0", "1"]


def test_keyword_arguments_of_modules():
    calls = trace(Net(lambda n, x: n.norm(input=n.conv(input=x))), X)
    assert calls.calls[0].kwargs == {"input": calls.inputs[0]}
    assert calls.calls[1].inputs == calls.calls[0].outputs


def test_a_module_registered_twice_has_its_first_name():
    net = Net(lambda n, x: n.again(n.conv(x)))
    net.again = net.conv
    assert names(trace(net, X)) == ["conv", "conv"]


def test_empty_sequential_is_nothing():
    assert names(trace(nn.Sequential(nn.Sequential(), nn.ReLU()), X)) == ["1"]


def test_the_network_and_the_input_are_left_alone():
    network = train_briefly(ResNet(), (3, 9, 8), steps=1).train()
    network.layers[0].eval()
    twin = copy.deepcopy(network)
    modes = [m.training for m in network.modules()]
    x = torch.randn(2, 3, 9, 8)
    before, seed = x.clone(), torch.get_rng_state()
    trace(nn.Sequential(nn.ReLU(inplace=True), network), x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), seed)
    assert [m.training for m in network.modules()] == modes
    for (key, a), b in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_in_inference_mode_and_from_a_leaf_that_requires_a_gradient():
    wire = VIEWS["of a view"]
    with torch.inference_mode():
        calls = trace(Net(wire), X.clone())
    assert "change in place through another view" in names(calls)
    calls = trace(Net(lambda n, x: n.conv(x.relu_())), X.clone().requires_grad_())
    assert names(calls) == ["relu_", "conv"]


def test_a_network_that_does_not_run_is_refused():
    with pytest.raises(
        ConversionError,
        match=r"Sequential does not run on example_input of shape \(2, 3, 5, 6\): .* 2 channels",
    ):
        trace(conv_net(2), torch.randn(2, 3, 5, 6))


def test_a_network_that_catches_an_error_goes_on():
    """The failed call is not written down, and nothing after it, so nothing wrong is."""

    def wire(n, x):
        with contextlib.suppress(RuntimeError):
            n.conv(x[:, :2])
        return n.norm(x)

    assert not trace(Net(wire), X).of_module("norm")


def test_leaves():
    assert list(leaves({"a": (1, [2, {"b": 3}]), "c": None})) == [1, 2, 3, None]


def test_call_describes_modules():
    call = Call("outer", "outer.conv", None, (), {}, ())
    assert call.describe() == "module 'outer.conv'"
