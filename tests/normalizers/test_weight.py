from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import ConversionError
from pyronorm.normalizers import Analytic, LatentNorm, Weight
from tests.giving import give
from tests.nets import ResNet, train_briefly

LINEAR = {
    "linear": (lambda: nn.Linear(5, 6), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 4, 5, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), dilation=(1, 1, 2)), (4, 4, 3, 4, 7)),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2),
        (4, 4, 5),
    ),
    "transposed 1d dilated": (lambda: nn.ConvTranspose1d(4, 6, 3, dilation=2), (4, 4, 5)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2), groups=2
        ),
        (4, 4, 3, 5),
    ),
    "transposed 2d one group": (lambda: nn.ConvTranspose2d(4, 6, 2, bias=False), (4, 4, 3, 5)),
    "transposed 3d": (
        lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3), stride=(1, 2, 2), groups=2),
        (4, 4, 3, 2, 4),
    ),
}


@pytest.fixture(params=LINEAR, ids=str)
def case(request):
    make, shape = LINEAR[request.param]
    layer = LatentNorm(Weight(), 6, parts={"linear": make()})
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    layer.start_mean.normal_()
    layer.start_std.uniform_(0.5, 2)
    return layer, torch.randn(shape)


def channel_by_channel(linear: nn.Module) -> torch.Tensor:
    """The weight with what makes up each output channel divided by its norm."""
    weight = linear.weight.detach().clone()
    if not isinstance(linear, nn.modules.conv._ConvTransposeNd):
        for channel in weight:
            channel /= channel.square().sum().sqrt()
        return weight
    for rows in weight.chunk(linear.groups):  # the input channels of a group
        for channel in range(rows.shape[1]):
            rows[:, channel] /= rows[:, channel].square().sum().sqrt()
    return weight


def definition(layer: LatentNorm, x: torch.Tensor, shift, scale) -> torch.Tensor:
    linear = copy.deepcopy(layer.linear)
    linear.weight = nn.Parameter(channel_by_channel(linear))
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
    give(layer, (shift, scale))
    expected = definition(layer, x, shift, scale)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_without_start_it_is_torch_weight_norm(case):
    layer, x = case
    if isinstance(layer.linear, nn.modules.conv._ConvTransposeNd):
        layer.linear = type(layer.linear)(4, 6, 2)
    transposed = isinstance(layer.linear, nn.modules.conv._ConvTransposeNd)
    layer.start_mean.zero_()
    layer.start_std.fill_(1)
    theirs = copy.deepcopy(layer.linear)
    theirs.bias = nn.Parameter(layer.bias.detach().clone())
    theirs = nn.utils.parametrizations.weight_norm(theirs, dim=int(transposed))
    shape = [1] * layer.linear.weight.ndim
    shape[int(transposed)] = -1
    theirs.parametrizations.weight.original0.data = layer.weight.detach().view(shape)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_scale_of_the_weight_does_not_matter(case):
    layer, x = case
    before = layer(x)
    with torch.no_grad():
        layer.linear.weight *= 7
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


def test_one_convolution_and_nothing_else_touches_the_activations():
    layer = LatentNorm(Weight(), 6, parts={"linear": nn.Conv2d(4, 6, 3, padding=1)})
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    x = torch.randn(2, 4, 30, 30)
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
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
        give(layer, (shift, scale))
        return torch.func.functional_call(layer, {"linear.weight": v, "weight": weight}, (x,))

    inputs = (x, shift, scale, layer.linear.weight, layer.weight)
    assert torch.autograd.gradcheck(evaluate, inputs, fast_mode=True)


PARAMETRIZED = [
    (nn.utils.parametrizations.weight_norm, nn.Conv2d(4, 6, 3, groups=2), (4, 4, 5, 7)),
    (nn.utils.parametrizations.weight_norm, nn.ConvTranspose1d(4, 6, 3), (4, 4, 5)),
    (nn.utils.parametrizations.spectral_norm, nn.Linear(5, 6), (4, 5)),
    (nn.utils.parametrizations.orthogonal, nn.Conv1d(4, 6, 2), (4, 4, 5)),
]


@pytest.mark.parametrize(("parametrize", "linear", "shape"), PARAMETRIZED)
def test_a_parametrized_layer_is_one_with_the_weight_that_it_has(parametrize, linear, shape):
    plain, x = copy.deepcopy(linear), torch.randn(shape)
    linear = parametrize(copy.deepcopy(linear)).eval()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        plain.weight.copy_(linear.weight)
    assert not torch.equal(plain.weight.norm(), torch.ones(()))
    ours, theirs = (LatentNorm(Weight(), 6, parts={"linear": layer}) for layer in (linear, plain))
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    own = dict(ours.named_parameters())
    grads = [p.grad for name, p in own.items() if "parametrizations.weight" in name]
    assert len(grads) > 0
    assert all(grad is not None for grad in grads)


def test_vmap_over_latents_equals_a_loop(case):
    layer, x = case
    shift, scale = torch.randn(3, 1, 6), torch.rand(3, 1, 6) + 0.5

    def evaluate(shift, scale):
        give(layer, (shift, scale))
        return layer(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-5)


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip connection; kernels of unequal size."""

    def __init__(self, dims: int, groups: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.down = nn.Sequential(conv(2, 4, 3, 2, 1, groups=groups), norm(4), nn.ReLU())
        self.up = nn.Sequential(
            up(4, 6, 3, 2, 1, output_padding=1, groups=groups, bias=groups == 1), norm(6), nn.ReLU()
        )
        self.out = nn.Sequential(conv(8, 4, 1), norm(4), nn.ReLU(), conv(4, 3, 1))

    def forward(self, x):
        return self.out(torch.cat([self.up(self.down(x)), x], 1))


def settled(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Trained a little, statistics and all, and in evaluation mode."""
    return train_briefly(network, shape, steps=6).eval()


@pytest.mark.parametrize("normalizer", [Weight(), Analytic()], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero last weights"])
def test_a_residual_network_starts_as_the_same_function(normalizer, zero):
    original = settled(ResNet(blocks=2), (3, 9, 8))
    if zero:
        for name, module in original.named_modules():
            if name.endswith("bn2"):
                nn.init.zeros_(module.weight)
    x = torch.randn(6, 3, 9, 8) * 2 + 1
    network = convert(original, normalizer, example_input=x)
    assert all(isinstance(m, LatentNorm) for m in network.modules() if hasattr(m, "start_mean"))
    for training in (False, True):
        assert (network.train(training)(x) - original(x)).abs().max() < 1e-5
    assert original(x).std() > 0.03
    network(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("normalizer", [Weight(), Analytic()], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dims", "shape"), [(1, (2, 8)), (2, (2, 6, 8)), (3, (2, 4, 6, 8))])
def test_a_network_with_transposed_convolutions_starts_as_the_same_function(
    normalizer, dims, shape, groups
):
    original = settled(UNet(dims, groups), shape)
    x = torch.randn(5, *shape) * 2 + 1
    network = convert(original, normalizer, example_input=x)
    torch.testing.assert_close(network(x), original(x), rtol=1e-4, atol=1e-4)


def test_parametrized_convolutions_start_as_the_same_function():
    original = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(4, 5, 3), dim=1),
        nn.BatchNorm2d(5),
    )
    settled(original, (3, 6, 7))
    x = torch.randn(4, 3, 6, 7)
    for normalizer in (Weight(), Analytic()):
        network = convert(original, normalizer, example_input=x)
        torch.testing.assert_close(network(x), original(x), rtol=1e-4, atol=1e-4)
        network(x).square().sum().backward()
        found = [p.grad for n, p in network.named_parameters() if "parametrizations" in n]
        assert len(found) == 4
        assert all(grad is not None for grad in found)


def test_a_transposed_convolution_called_with_a_size_is_refused():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 6, 3, stride=2)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(self.up(x, output_size=[12]))

    with pytest.raises(ConversionError, match="'up', which is called with more than its input"):
        convert(Sized(), Weight(), example_input=torch.randn(2, 4, 5))


def test_a_layer_it_cannot_own_is_refused():
    layer = LatentNorm(Weight(), 6, parts={"linear": nn.Bilinear(2, 3, 6)})
    with pytest.raises(ConversionError, match=r"owns a linear or \(transposed\) conv.* Bilinear"):
        layer(torch.randn(4, 2))


def test_bfloat16_autocast_is_close():
    layer = LatentNorm(Weight(), 6, parts={"linear": nn.Conv2d(4, 6, 3)})
    x = torch.randn(2, 4, 8, 8)
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert F.mse_loss(y.float(), exact).sqrt() < 0.02 * exact.std()


@pytest.mark.parametrize("examples", [None, 4])
def test_bfloat16_network_takes_float32_latents(case, examples):
    layer, x = case
    batch = () if examples is None else (examples,)
    give(layer, (torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5))
    exact = layer(x)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert F.mse_loss(y.float(), exact).sqrt() < 0.03 * exact.std()
