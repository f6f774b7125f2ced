from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.errors import ConversionError, StatisticsError
from pyronorm.layers import LatentNorm, Weight, convert, data_dependent_start
from tests.nets import SHAPES, conv_net

LINEAR = {
    "linear": (lambda: nn.Linear(5, 6), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 4, 5, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), dilation=(1, 1, 2)), (4, 4, 3, 4, 7)),
}


@pytest.fixture(params=LINEAR, ids=str)
def case(request):
    make, shape = LINEAR[request.param]
    layer = LatentNorm(Weight(), 6, linear=make())
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    layer.start_mean.normal_()
    layer.start_std.uniform_(0.5, 2)
    return layer, torch.randn(shape)


def definition(layer: LatentNorm, x: torch.Tensor, shift, scale) -> torch.Tensor:
    linear = copy.deepcopy(layer.linear)
    norm = linear.weight.flatten(1).norm(dim=1)
    linear.weight = nn.Parameter(linear.weight / norm.view(-1, *(1,) * (linear.weight.ndim - 1)))
    linear.bias = None
    y = linear(x)

    def ch(v):
        v = v.reshape(-1, 6)
        return v.reshape(*v.shape, *(1,) * (y.ndim - 2))

    x_hat = (y - ch(layer.start_mean)) / ch(layer.start_std)
    return ch(layer.weight) * ch(scale) * (x_hat + ch(shift)) + ch(layer.bias)


@pytest.mark.parametrize("examples", [None, 1, 4])
def test_latents_follow_the_definition(case, examples):
    layer, x = case
    batch = () if examples is None else (examples,)
    shift, scale = torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5
    layer.latents = (shift, scale)
    expected = definition(layer, x, shift, scale)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_without_start_it_is_torch_weight_norm(case):
    layer, x = case
    layer.start_mean.zero_()
    layer.start_std.fill_(1)
    theirs = copy.deepcopy(layer.linear)
    theirs.bias = nn.Parameter(layer.bias.detach().clone())
    theirs = nn.utils.parametrizations.weight_norm(theirs)
    gain = layer.weight.detach().view(-1, *(1,) * (layer.linear.weight.ndim - 1))
    theirs.parametrizations.weight.original0.data = gain
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_scale_of_the_weight_does_not_matter(case):
    layer, x = case
    before = layer(x)
    with torch.no_grad():
        layer.linear.weight *= 7
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


def test_one_convolution_and_nothing_else_touches_the_activations():
    layer = LatentNorm(Weight(), 6, linear=nn.Conv2d(4, 6, 3, padding=1))
    layer.latents = (torch.randn(6), torch.rand(6) + 0.5)
    x = torch.randn(2, 4, 30, 30)
    with torch.profiler.profile(record_shapes=True) as profile:
        layer(x)
    big = {
        event.name
        for event in profile.events()
        if any(list(shape)[-2:] == [30, 30] for shape in event.input_shapes)
    }
    assert not big & {f"aten::{name}" for name in ("mul", "add", "addcmul", "sub", "div", "copy_")}
    assert "aten::conv2d" in big


def test_gradients_reach_everything(case):
    layer, x = case
    layer, x = layer.double(), x.double()[:2].requires_grad_()
    shift = torch.randn(6, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(6, dtype=torch.double) + 0.5).requires_grad_()

    def evaluate(x, shift, scale, v, weight):
        layer.latents = (shift, scale)
        return torch.func.functional_call(layer, {"linear.weight": v, "weight": weight}, (x,))

    inputs = (x, shift, scale, layer.linear.weight, layer.weight)
    assert torch.autograd.gradcheck(evaluate, inputs, fast_mode=True)


def test_vmap_over_latents_equals_a_loop(case):
    layer, x = case
    shift, scale = torch.randn(3, 1, 6), torch.rand(3, 1, 6) + 0.5

    def evaluate(shift, scale):
        layer.latents = (shift, scale)
        return layer(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_data_dependent_start_standardizes_every_layer_in_turn(dims):
    x = torch.randn(32, *SHAPES[dims]) * 3 + 1
    network = convert(conv_net(dims), Weight(), example_input=x[:2])
    data_dependent_start(network, x)
    outputs = []
    for layer in network:
        if isinstance(layer, LatentNorm):
            layer.register_forward_hook(lambda m, args, y: outputs.append(y))
    network(x)
    assert len(outputs) == 2
    for y in outputs:  # weight is 1 and bias 0, so outputs are x_hat
        flat = y.movedim(1, 0).flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros(len(flat)), atol=1e-5, rtol=0)
        torch.testing.assert_close(flat.var(1, correction=0), torch.ones(len(flat)))


def test_data_dependent_start_equals_batch_norm_on_that_batch():
    x = torch.randn(32, *SHAPES[2])
    original = conv_net(2)
    network = convert(original, Weight(), example_input=x[:2])
    data_dependent_start(network, x)
    torch.testing.assert_close(network(x), original.train()(x), rtol=1e-3, atol=1e-4)


def test_data_dependent_start_for_a_channel_last_linear_layer():
    original = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))
    x = torch.randn(7, 4, 5)
    network = convert(original, Weight(), example_input=x)
    data_dependent_start(network, x)
    y = network(x).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(6))
    layer = network[1]
    layer.latents = (torch.randn(7, 6), torch.rand(7, 6) + 0.5)
    expected = layer.latents[1][:, None] * (y.view(7, 4, 6) + layer.latents[0][:, None])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_data_dependent_start_refuses_constant_data():
    network = convert(conv_net(2), Weight(), example_input=torch.randn(2, *SHAPES[2]))
    with pytest.raises(StatisticsError, match=r"1: 4 of 4 channels are constant"):
        data_dependent_start(network, torch.zeros(8, *SHAPES[2]))
    with pytest.raises(ConversionError, match="no Weight or Analytic normalizer"):
        data_dependent_start(nn.Linear(2, 2), torch.zeros(8, 2))


def test_a_layer_it_cannot_own_is_refused():
    layer = LatentNorm(Weight(), 6, linear=nn.Bilinear(2, 3, 6))
    with pytest.raises(ConversionError, match=r"owns a linear or \(transposed\) conv.* Bilinear"):
        layer(torch.randn(4, 2))


def test_bfloat16_autocast_is_close():
    layer = LatentNorm(Weight(), 6, linear=nn.Conv2d(4, 6, 3))
    x = torch.randn(2, 4, 8, 8)
    layer.latents = (torch.randn(6), torch.rand(6) + 0.5)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert F.mse_loss(y.float(), exact).sqrt() < 0.02 * exact.std()


@pytest.mark.parametrize("examples", [None, 4])
def test_bfloat16_network_takes_float32_latents(case, examples):
    layer, x = case
    batch = () if examples is None else (examples,)
    layer.latents = (torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5)
    exact = layer(x)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert F.mse_loss(y.float(), exact).sqrt() < 0.03 * exact.std()
