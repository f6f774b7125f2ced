"""Each operation alone, on independent Gaussian input, against running it many times."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyronorm.conversion import convert
from pyronorm.errors import ConversionError
from pyronorm.normalizers import Analytic

# Equal sizes on all axes, where a rule that mixes axes up is not caught by shapes.
SHAPES = {"4d": (4, 4, 4, 4), "5d": (4, 4, 4, 4, 4), "3d": (4, 4, 4), "2d": (4, 4)}
MEAN, STD = (-0.8, 0.3, 1.0, 2.0), (0.5, 1.5, 0.7, 1.0)
GIVEN = (torch.tensor(MEAN), torch.tensor(STD).square())
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
RUNS = 200


class Inner(nn.Module):
    """The module whose code calls the operation."""

    def __init__(self, wire, dims: int) -> None:
        super().__init__()
        ones = (1,) * (dims - 2)
        self.gain = nn.Parameter(torch.rand(4, *ones) + 0.5)
        self.shift = nn.Parameter(torch.randn(1, 4, *ones))
        self.number = nn.Parameter(torch.rand(()) + 0.5)
        self.register_buffer("offset", torch.randn(1, 4, *ones))
        self.positional = nn.Parameter(torch.randn((1, 1, *(4,) * (dims - 2))))
        self.lasting = nn.Parameter(torch.rand(4) + 0.5)
        self.batchwise = nn.Parameter(torch.randn(4, *(1,) * (dims - 1)))
        self.slopes = nn.Parameter(torch.tensor([-0.5, 0.0, 0.3, 1.2]))
        self.kernel = nn.Parameter(torch.randn(6, 4, *(3,) * (dims - 2)))
        self.grouped = nn.Parameter(torch.randn(6, 2, *(2,) * (dims - 2)))
        self.up = nn.Parameter(torch.randn(4, 3, *(2,) * (dims - 2)))
        self.bias = nn.Parameter(torch.randn(6))
        self.square = nn.Parameter(torch.randn(4, 4))
        self.square_kernel = nn.Parameter(torch.randn(4, 4, *(1,) * (dims - 2)))
        self.constant = torch.tensor(2.0)  # neither a parameter nor a buffer
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


class Net(nn.Module):
    """An operation before a normalization."""

    def __init__(self, wire, shape) -> None:
        super().__init__()
        module = isinstance(wire, nn.Module)
        self.inner = nn.Sequential(wire) if module else Inner(wire, len(shape))
        with torch.no_grad():
            out = self.inner.eval()(torch.randn(shape))
        self.inner.train()
        self.norm = NORMS[out.ndim](out.shape[1])

    def forward(self, x):
        return self.norm(self.inner(x))


def build(wire, dims: str) -> nn.Module:
    shape = SHAPES[dims]
    net = Net(wire, shape)
    analytic = Analytic(input_mean=MEAN, input_std=STD)
    return convert(net, analytic, only=["norm"], example_input=torch.randn(shape))


def data(dims: str) -> Tensor:
    shape = SHAPES[dims]
    ones = (1,) * (len(shape) - 2)
    mean, var = (part.view(1, 4, *ones) for part in GIVEN)
    return mean + var.sqrt() * torch.randn(RUNS, *shape)


@torch.no_grad()
def assert_as_measured(network: nn.Module, dims: str, tolerance: float = 0.01) -> None:
    """Moments of each channel over runs, batch and positions.

    |z| < 5.5 for each figure, or the given relative error (of quadrature): false alarms of all
    about 1000 figures together below 1e-4.
    """
    mean, var = network.norm.surroundings(torch.empty(0))
    out = torch.stack([network.inner(x).movedim(1, 0).flatten(1) for x in data(dims)])
    assert out.shape[1] == len(mean)
    centred = out - mean[:, None]
    errors = centred.mean(2), centred.square().mean(2) - var
    for error, scale in zip(errors, (var.sqrt(), var), strict=True):
        z = error.mean(0).abs() / (error.std(0) / math.sqrt(RUNS)).clamp(min=1e-12)
        bad = (z > 5.5) & (error.mean(0).abs() > tolerance * scale + 1e-5)
        assert not bad.any(), (error.mean(0), mean, var)


ANY = {
    # activations, in every form
    "relu": lambda n, x: F.relu(x),
    "torch relu": lambda n, x: torch.relu(x),
    "method relu": lambda n, x: x.relu(),
    "relu in place": lambda n, x: x.clone().relu_(),
    "relu option": lambda n, x: F.relu(x * 1, inplace=True),
    "leaky": lambda n, x: F.leaky_relu(x, 0.3),
    "leaky default": lambda n, x: F.leaky_relu(x),
    "leaky keyword": lambda n, x: F.leaky_relu(x, negative_slope=-0.4),
    "prelu": lambda n, x: F.prelu(x, n.slopes),
    "prelu method": lambda n, x: x.prelu(n.slopes),
    "relu6": lambda n, x: F.relu6(x),
    "hardtanh": lambda n, x: F.hardtanh(x, -0.2, 0.9),
    "hardtanh default": lambda n, x: F.hardtanh(x),
    "clamp": lambda n, x: x.clamp(-0.3, 0.8),
    "clamp keywords": lambda n, x: torch.clamp(x, max=1, min=0),
    "clamp below": lambda n, x: x.clamp(min=-0.3),
    "clamp above": lambda n, x: torch.clip(x, None, 0.7),
    "clamp to infinity": lambda n, x: x.clamp(-math.inf, 0.5),
    "clamp of all": lambda n, x: x.clamp(-math.inf, math.inf),
    "clamp in place": lambda n, x: (x * 1).clamp_(0.1, 2),
    "absolute": lambda n, x: abs(x),
    "absolute function": lambda n, x: torch.abs(x),
    "gelu": lambda n, x: F.gelu(x),
    "gelu tanh": lambda n, x: F.gelu(x, approximate="tanh"),
    "silu in place": lambda n, x: F.silu(x * 1, inplace=True),
    "mish": lambda n, x: F.mish(x),
    "sigmoid": lambda n, x: x.sigmoid(),
    "tanh in place": lambda n, x: (x * 1).tanh_(),
    "softplus": lambda n, x: F.softplus(x, 2, 10),
    "softplus keyword": lambda n, x: F.softplus(x, beta=3),
    "elu": lambda n, x: F.elu(x, 0.5, True),
    "selu": lambda n, x: torch.selu(x),
    "celu": lambda n, x: F.celu(x, alpha=0.4),
    "hardswish": lambda n, x: F.hardswish(x),
    "hardsigmoid": lambda n, x: F.hardsigmoid(x),
    "logsigmoid": lambda n, x: F.logsigmoid(x),
    "softsign": lambda n, x: F.softsign(x),
    "tanhshrink": lambda n, x: F.tanhshrink(x),
    "softshrink": lambda n, x: F.softshrink(x, 0.2),
    "exp": lambda n, x: torch.exp(x / 4),
    "square": lambda n, x: x.square(),
    "sin": lambda n, x: torch.sin(x),
    "cos": lambda n, x: x.cos(),
    # arithmetic with numbers and parameters
    "plus": lambda n, x: x + 2,
    "reflected plus": lambda n, x: 2.5 + x,
    "plus in place": lambda n, x: operator_iadd(x * 1, 3),
    "minus": lambda n, x: x - 2,
    "reflected minus": lambda n, x: 2 - x,
    "minus in place": lambda n, x: (x * 1).sub_(3),
    "rsub": lambda n, x: torch.rsub(x, 3, alpha=2),
    "minus alpha": lambda n, x: torch.sub(x, 3, alpha=0.5),
    "plus alpha": lambda n, x: torch.add(x, n.shift, alpha=-2),
    "times": lambda n, x: x * -2,
    "reflected times": lambda n, x: 0.3 * x,
    "times in place": lambda n, x: (x + 0).mul_(2),
    "negative": lambda n, x: -x,
    "over": lambda n, x: x / 4,
    "over function": lambda n, x: torch.div(x, 4),
    "over parameter": lambda n, x: x / n.gain if x.ndim > 2 else x / n.lasting,
    "parameter": lambda n, x: x * n.shift,
    "parameter first": lambda n, x: n.shift * x,
    "parameter minus": lambda n, x: n.shift - x,
    "buffer": lambda n, x: x + n.offset,
    "parameter of no axes": lambda n, x: x * n.number,
    "shorter parameter": lambda n, x: x * n.gain,
    "cast parameter": lambda n, x: x * n.shift.to(x.dtype),
    # shapes
    "flatten": lambda n, x: x.flatten(1),
    "flatten positions": lambda n, x: x.flatten(2) if x.ndim > 2 else x,
    "view": lambda n, x: x.view(x.shape[0], -1),
    "reshape": lambda n, x: torch.reshape(x, (4, 4, -1)) if x.ndim > 2 else x,
    "unsqueeze": lambda n, x: x.unsqueeze(-1).squeeze(-1),
    "index none": lambda n, x: x[..., None] if x.ndim < 5 else x,
    "clone": lambda n, x: x.clone().contiguous(),
    "casts": lambda n, x: x.double().to(torch.float32).float(),
    "detach": lambda n, x: x.detach(),
    # channels
    "cat": lambda n, x: torch.cat([F.relu(x), -x], 1),
    "cat axis": lambda n, x: torch.concatenate((x, x * 2, x), axis=1),
    "cat negative axis": lambda n, x: torch.cat([x, x.abs()], dim=1 - x.ndim),
    # dropout of functions
    "dropout of the mode": lambda n, x: F.dropout(x, 0.3, n.training),
    "dropout always": lambda n, x: F.dropout(x, p=0.3),
    "torch dropout": lambda n, x: torch.dropout(x, 0.3, train=n.training),
}


def operator_iadd(x, y):
    x += y
    return x


POSITIONS = {
    "mean": lambda n, x: x.mean(tuple(range(2, x.ndim))),
    "mean keepdim": lambda n, x: x.mean(-1, keepdim=True),
    "mean list": lambda n, x: torch.mean(x, dim=list(range(2, x.ndim)), keepdim=True),
    "mean axis": lambda n, x: x.mean(axis=2),
    "slice": lambda n, x: x[:, :, 1:],
    "steps": lambda n, x: x[..., ::2],
    "one position": lambda n, x: x[:, :, 2],
    "last position": lambda n, x: x[..., -1],
    "stride of a shortcut": lambda n, x: x[:, :, ::2] + 1,
    "new axis": lambda n, x: x[..., None, :] if x.ndim < 5 else x,
    "pad": lambda n, x: F.pad(x, (1, 2), mode="circular") if x.ndim == 3 else x,
    "crop": lambda n, x: F.pad(x, (-1, -1)),
    "pad channels": lambda n, x: F.pad(x, (0, 0) * (x.ndim - 2) + (1, 2)),
    "pad channels by a value": lambda n, x: F.pad(x, (0, 0) * (x.ndim - 2) + (2, 0), value=1.5),
    "conv": lambda n, x: CONV[x.ndim](x, n.kernel, n.bias),
    "conv no bias": lambda n, x: CONV[x.ndim](x, weight=n.kernel, stride=2, bias=None),
    "grouped": lambda n, x: CONV[x.ndim](x, n.grouped, n.bias, 1, 0, 1, 2),
    "grouped keywords": lambda n, x: CONV[x.ndim](x, n.grouped, groups=2, dilation=2),
    "transposed": lambda n, x: UP[x.ndim](x, n.up, stride=2),
    "transposed groups": lambda n, x: UP[x.ndim](x, n.up, n.bias, 2, 0, 0, 2),
    "average": lambda n, x: AVERAGE[x.ndim](x, 2),
    "average stride": lambda n, x: AVERAGE[x.ndim](x, kernel_size=3, stride=1),
    "adaptive": lambda n, x: ADAPTIVE[x.ndim](x, 1),
    "adaptive two": lambda n, x: ADAPTIVE[x.ndim](x, 2),
    "adaptive uneven": lambda n, x: ADAPTIVE[x.ndim](x, 3),
    "adaptive same": lambda n, x: ADAPTIVE[x.ndim](x, 4),
    "adaptive larger": lambda n, x: ADAPTIVE[x.ndim](x, 7),
    "maximum": lambda n, x: MAXIMUM[x.ndim](x, 2),
    "maximum stride": lambda n, x: MAXIMUM[x.ndim](x, kernel_size=3, stride=1),
    "adaptive maximum": lambda n, x: ADAPTIVE_MAXIMUM[x.ndim](x, 2),
    "nearest": lambda n, x: F.interpolate(x, scale_factor=2),
    "nearest down": lambda n, x: F.interpolate(x, size=3, mode="nearest-exact"),
    "area": lambda n, x: F.interpolate(x, size=3, mode="area"),
    "linear": lambda n, x: F.interpolate(x, scale_factor=2, mode=LINEAR[x.ndim]),
    "linear aligned": lambda n, x: F.interpolate(x, 7, None, LINEAR[x.ndim], True),
    "linear down": lambda n, x: F.interpolate(x, size=3, mode=LINEAR[x.ndim]),
}
CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
UP = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
AVERAGE = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
MAXIMUM = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
ADAPTIVE = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
ADAPTIVE_MAXIMUM = {3: F.adaptive_max_pool1d, 4: F.adaptive_max_pool2d, 5: F.adaptive_max_pool3d}
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}

MODULES = {
    "ReLU": (nn.ReLU(), "4d"),
    "LeakyReLU": (nn.LeakyReLU(0.3), "3d"),
    "PReLU": (nn.PReLU(4, 0.4), "4d"),
    "PReLU of one": (nn.PReLU(init=-0.4), "2d"),
    "ReLU6": (nn.ReLU6(), "4d"),
    "Hardtanh": (nn.Hardtanh(-0.2, 0.9), "2d"),
    "GELU": (nn.GELU("tanh"), "3d"),
    "SiLU": (nn.SiLU(inplace=True), "4d"),
    "Softplus": (nn.Softplus(2.0), "4d"),
    "ELU": (nn.ELU(0.5), "4d"),
    "CELU": (nn.CELU(0.5, inplace=True), "4d"),
    "Hardswish": (nn.Hardswish(), "4d"),
    "Tanh": (nn.Tanh(), "2d"),
    "Identity": (nn.Identity(), "4d"),
    "Flatten": (nn.Flatten(), "5d"),
    "Flatten positions": (nn.Flatten(2), "5d"),
    "Dropout": (nn.Dropout(0.3), "2d"),
    "Dropout1d": (nn.Dropout1d(0.3), "3d"),
    "Dropout2d": (nn.Dropout2d(0.3), "4d"),
    "Dropout3d": (nn.Dropout3d(0.3), "5d"),
    "Dropout of all": (nn.Dropout(1.0), "2d"),
    "AvgPool1d": (nn.AvgPool1d(2), "3d"),
    "AvgPool2d": (nn.AvgPool2d((1, 2)), "4d"),
    "AvgPool3d": (nn.AvgPool3d(2), "5d"),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((None, 1)), "4d"),
    "MaxPool1d": (nn.MaxPool1d(2), "3d"),
    "MaxPool2d": (nn.MaxPool2d((2, 1)), "4d"),
    "MaxPool3d": (nn.MaxPool3d((1, 2, 2)), "5d"),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(1), "4d"),
    "Upsample": (nn.Upsample(scale_factor=2, mode="nearest"), "3d"),
    "Upsample bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "4d"),
    "Upsample bicubic": (nn.Upsample(size=(7, 6), mode="bicubic", align_corners=True), "4d"),
    "UpsamplingBilinear2d": (nn.UpsamplingBilinear2d(7), "4d"),
    "CircularPad2d": (nn.CircularPad2d(1), "4d"),
    "ReplicationPad3d": (nn.ReplicationPad3d(1), "5d"),
    "Linear": (nn.Linear(4, 6), "2d"),
    "Linear without bias": (nn.Linear(4, 6, bias=False), "2d"),
    "Conv1d": (nn.Conv1d(4, 6, 3, groups=2), "3d"),
    "Conv2d": (nn.Conv2d(4, 6, (2, 3), dilation=(2, 1)), "4d"),
    "Conv3d": (nn.Conv3d(4, 6, 2, stride=2, bias=False), "5d"),
    "Conv2d circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), "4d"),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 2, 2), "3d"),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), "4d"),
    "ConvTranspose2d gaps": (nn.ConvTranspose2d(4, 6, 2, 2, output_padding=0), "4d"),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 6, (1, 2, 1), (1, 2, 1)), "5d"),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 2)), "4d"),
    "orthogonal": (nn.utils.parametrizations.orthogonal(nn.Linear(4, 3)), "2d"),
}


@pytest.mark.parametrize("dims", ["4d", "3d", "2d"])
@pytest.mark.parametrize("case", ANY)
def test_operations_on_any_shape(case, dims):
    network = build(ANY[case], dims)
    if "dropout" in case:
        for training in (True, False):
            assert_as_measured(network.train(training), dims)
    else:
        assert_as_measured(network, dims)


@pytest.mark.parametrize("dims", ["4d", "5d", "3d"])
@pytest.mark.parametrize("case", POSITIONS)
def test_operations_on_positions(case, dims):
    network = build(POSITIONS[case], dims)
    assert_as_measured(network, dims)


@pytest.mark.parametrize("case", MODULES)
def test_modules(case):
    module, dims = MODULES[case]
    network = build(module, dims)
    assert_as_measured(network, dims)
    if "Dropout" in case:
        # the layer's own mode counts, not that of what is around it
        assert_as_measured(network.eval(), dims)
        torch.testing.assert_close(network.norm.surroundings(torch.empty(0)), GIVEN)
        network.train().inner[0].eval()
        torch.testing.assert_close(network.norm.surroundings(torch.empty(0)), GIVEN)


def shuffle(n, x):
    return x.view(4, 2, 2, 4, 4).transpose(1, 2).reshape(4, 4, 4, 4)


def attention(n, x):
    weights = (x.flatten(2) @ x.flatten(2).mT).softmax(-1)
    return (weights @ x.flatten(2)).view_as(x)


def stray_layer(n, x):
    return STRAY[0](x)


STRAY = [nn.Conv2d(4, 4, 1)]

# Shapes agree everywhere here: (4, 4, 4, 4), or (4, 4).
REFUSED = {
    "softmax": (lambda n, x: x.softmax(1), "softmax"),
    "softmax function": (lambda n, x: F.softmax(x, dim=1), "softmax"),
    "attention": (attention, "view_as"),
    "scaled dot product": (
        lambda n, x: F.scaled_dot_product_attention(x, x, x),
        "scaled_dot_product_attention",
    ),
    "matmul": (lambda n, x: x @ x, "matmul"),
    "matmul by a parameter": (lambda n, x: x @ n.lasting.diag(), "matmul"),
    "einsum": (lambda n, x: torch.einsum("bchw,cd->bdhw", x, n.lasting.diag()), "einsum"),
    "channel shuffle": (shuffle, "transpose"),
    "channel shuffle function": (lambda n, x: F.channel_shuffle(x, 2), "channel_shuffle"),
    "pixel shuffle": (lambda n, x: F.pixel_shuffle(x, 2), "pixel_shuffle"),
    "transpose": (lambda n, x: x.transpose(1, 2), "transpose"),
    "transpose negative": (lambda n, x: x.transpose(-1, -3), "transpose"),
    "permute": (lambda n, x: x.permute(0, 3, 1, 2), "permute"),
    "mT": (lambda n, x: x.mT, "mT"),
    "movedim": (lambda n, x: x.movedim(-1, 1), "movedim"),
    "swapaxes": (lambda n, x: x.swapaxes(0, 1), "swapaxes"),
    "roll": (lambda n, x: x.roll(1, 1), "roll"),
    "flip": (lambda n, x: x.flip(1), "flip"),
    "sum": (lambda n, x: x.sum((2, 3)), "sum"),
    "mean over channels": (lambda n, x: x.mean(1, keepdim=True), "mean"),
    "mean over the batch": (lambda n, x: x - x.mean(0), "mean"),
    "mean over a negative axis": (lambda n, x: x.mean(-3, keepdim=True), "mean"),
    "mean over all": (lambda n, x: x * x.mean(), "mean"),
    "mean of no axes": (lambda n, x: x * x.mean(()), "mean"),
    "maximum over positions": (lambda n, x: x.amax((2, 3)), "amax"),
    "maximum with index": (lambda n, x: x.max(2)[0], "max"),
    "maximum of two": (lambda n, x: torch.maximum(x, F.conv2d(x, n.square_kernel)), "maximum"),
    "max pool with index": (lambda n, x: F.max_pool2d(x, 2, return_indices=True)[0], "pool2d"),
    "lp pool": (lambda n, x: F.lp_pool2d(x, 2.0, 2), "lp_pool2d"),
    "divisor": (lambda n, x: F.avg_pool2d(x, 2, divisor_override=3), "avg_pool2d' in 'inner' with"),
    "normalize": (lambda n, x: F.normalize(x), "normalize"),
    "layer norm function": (lambda n, x: F.layer_norm(x, (4,)), "layer_norm"),
    "batch norm function": (
        lambda n, x: F.batch_norm(x, n.lasting.detach(), n.lasting.detach()),
        "batch_norm",
    ),
    "stack": (lambda n, x: torch.stack([x, x], 1).flatten(2), "stack"),
    "stack examples": (lambda n, x: torch.stack([y * 2 for y in x]), "stack"),
    "chunk": (lambda n, x: x.chunk(2, 1)[0], "chunk"),
    "split": (lambda n, x: x.split([1, 3], 1)[1], "split"),
    "unbind": (lambda n, x: x.unbind(1)[0].unsqueeze(1), "unbind"),
    "gated linear unit": (lambda n, x: F.glu(x, 1), "glu"),
    "first channels": (lambda n, x: x[:, :2], "__getitem__"),
    "channels backwards": (lambda n, x: x[:, [3, 2, 1, 0]], "__getitem__"),
    "channels backwards by ellipsis": (lambda n, x: x[..., [3, 2, 1, 0], :, :], "__getitem__"),
    "every other channel": (lambda n, x: x[:, ::2], "__getitem__"),
    "one channel": (lambda n, x: x[:, 0].unsqueeze(1), "__getitem__"),
    "examples": (lambda n, x: x[[1, 0, 3, 2]], "__getitem__"),
    "positions at an index": (lambda n, x: x[:, :, [0, 1], [2, 3]], "__getitem__"),
    "axes to the front": (lambda n, x: x[:, :, [0, 1, 2, 3], :, None][..., 0], "__getitem__"),
    "positions of a tensor": (lambda n, x: x[:, :, x[0, 0, 0].argsort()], "__getitem__"),
    "mask": (lambda n, x: x[x > -99].view(4, 4, 4, 4), "__getitem__"),
    "where": (lambda n, x: torch.where(x > 0, x, 0.1 * x), "where"),
    "masked fill": (lambda n, x: x.masked_fill(x < 0, 0), "masked_fill"),
    "expand": (lambda n, x: x[:, :, :1].expand(-1, -1, 4, -1), "expand"),
    "repeat": (lambda n, x: x.repeat(1, 2, 1, 1), "repeat"),
    "unflatten": (lambda n, x: x.unflatten(1, (2, 2)).flatten(2), "flatten"),
    "channels into positions": (lambda n, x: x.view(4, 2, 2 * 4, 4), "view"),
    "batch into channels": (lambda n, x: x.reshape(2, 8, 4, 4), "reshape"),
    "flatten the batch": (lambda n, x: x.flatten(0, 1).unsqueeze(1), "flatten' in 'inner' from"),
    "new axis for channels": (lambda n, x: x.unsqueeze(1), "unsqueeze"),
    "new axis by index": (lambda n, x: x[:, None], "__getitem__"),
    "bits": (lambda n, x: x.view(torch.int32).view(torch.float32), "int32"),
    "cast to integers": (lambda n, x: x.to(torch.int64).float(), "int64"),
    "long": (lambda n, x: x.long().float(), "long"),
    "comparison": (lambda n, x: (x > 0).float(), "gt"),
    "floor": (lambda n, x: x.floor(), "floor"),
    "floor division": (lambda n, x: x // 2, "__floordiv__"),
    "rounding": (lambda n, x: torch.div(x, 2, rounding_mode="trunc"), "div"),
    "reflected division": (lambda n, x: 1 / x, "__rdiv__"),
    "division by data": (lambda n, x: x / F.conv2d(x, n.square_kernel), "div"),
    "power": (lambda n, x: x**2, "pow"),
    "logarithm": (lambda n, x: x.abs().log(), "log"),
    "overflow": (lambda n, x: (x * 100).exp(), "exp' in 'inner', whose moments are not finite"),
    "own swish": (lambda n, x: x * torch.sigmoid(x), "functions of the same value"),
    "own mish": (lambda n, x: x * F.softplus(x).tanh(), "functions of the same value"),
    "own hard swish": (lambda n, x: x * F.relu6(x + 3) / 6, "functions of the same value"),
    "square": (lambda n, x: x * x, "functions of the same value"),
    "twice": (lambda n, x: x + x, "'add' in 'inner' of two values that are functions of the same"),
    "twice in place": (lambda n, x: operator_iadd(x * 1, x), "functions of the same value"),
    "nothing": (lambda n, x: x - x.clone(), "functions of the same value"),
    "twice by views": (lambda n, x: x.flatten(2).view(4, 4, 4, 4) + x, "functions of the same"),
    "twice by dropout": (lambda n, x: x + F.dropout(x, 0.1, n.training), "functions of the same"),
    "twice by relu": (lambda n, x: x + F.relu(x * 3 + 1), "functions of the same value"),
    "twice by slices": (lambda n, x: x[:, :, :2] + x[:, :, 2:], "functions of the same value"),
    "twice by cat": (
        lambda n, x: torch.cat([x, F.relu(x)], 1) + torch.cat([x, -x], 1),
        "functions of the same value",
    ),
    "long way round": (
        lambda n, x: (y := F.conv2d(x, n.square_kernel)) + (x + y).relu(),
        "functions of the same value",
    ),
    "positional parameter": (lambda n, x: x + n.positional, r"shape \(1, 1, 4, 4\)"),
    "parameter on the last axis": (lambda n, x: x * n.lasting, r"a parameter of shape \(4,\)"),
    "parameter per example": (lambda n, x: x + n.batchwise, r"shape \(4, 1, 1, 1\)"),
    "computed parameter": (lambda n, x: x * n.number.exp(), "'exp' in 'inner' of something other"),
    "viewed parameter": (lambda n, x: x * n.lasting.view(1, 4, 1, 1), "'view' in 'inner' of some"),
    "indexed parameter": (
        lambda n, x: x * n.lasting[:, None, None],
        "something other than the net",
    ),
    "constant": (lambda n, x: x * n.constant, "argument of type Tensor"),
    "new tensor": (lambda n, x: x * torch.ones(4, 4, 1, 1), "'ones'"),
    "noise": (lambda n, x: x + torch.randn_like(x), "randn_like"),
    "slope of the data": (lambda n, x: F.prelu(x, x[0, :, 0, 0]), "prelu' in 'inner' with a comp"),
    "dynamic convolution": (
        lambda n, x: F.conv2d(x, x),
        "conv2d' in 'inner' with a computed weight",
    ),
    "computed weight": (lambda n, x: F.conv2d(x, n.kernel * 2), "computed weight"),
    "constant weight": (lambda n, x: F.conv2d(x, n.kernel.data.clone()), "computed weight"),
    "stray layer": (stray_layer, "weight that is no parameter or buffer of the network"),
    "number of the data": (lambda n, x: x * float(x.max()), "'__float__' in 'inner', which makes"),
    "item of the data": (lambda n, x: x / x.std().item(), "'item' in 'inner', which makes numbers"),
    "branch on the data": (lambda n, x: x if x.sum() > 0 else -x, "'__bool__'"),
    "number of a parameter": (lambda n, x: x * float(n.number), "'__float__'"),
    "in place on a view": (
        lambda n, x: (x.flatten(2).relu_(), x * 1)[1],
        "in place through another",
    ),
    "set item": (lambda n, x: set_channel(x * 1), "__setitem__"),
    "clamp to tensors": (lambda n, x: x.clamp(n.number), "clamp"),
    "clamp the wrong way": (lambda n, x: x.clamp(1.0, 0.0), r"clamp' in 'inner' with the bounds 1"),
    "softplus of a parameter": (lambda n, x: torch.threshold(x, 0.1, 2), "threshold"),
    "padded batch": (lambda n, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)), "pad"),
    "shifted channels": (lambda n, x: F.pad(x, (0, 0, 0, 0, 1, -1)), "pad"),
    "cat of examples": (lambda n, x: torch.cat([x, x]), "cat"),
    "cat of positions": (lambda n, x: torch.cat([x, x], -1), "cat"),
    "cat of a parameter": (lambda n, x: torch.cat([x, n.offset.expand_as(x)], 1), "expand_as"),
    "alpha dropout": (lambda n, x: F.alpha_dropout(x, 0.2), "alpha_dropout"),
    "feature alpha dropout": (lambda n, x: F.feature_alpha_dropout(x, 0.2), "alpha_dropout"),
    "fourier": (lambda n, x: torch.fft.rfft2(x).abs(), "fft_rfft2"),
    "cumulative sum": (lambda n, x: x.cumsum(2), "cumsum"),
    "fold": (lambda n, x: F.unfold(x, 2), "unfold"),
    "unknown overload": (lambda n, x: torch.ops.aten.relu.default(x), "relu.default"),
    "linear on the last axis": (
        lambda n, x: F.linear(x, n.lasting.diag()),
        "linear' in .* computed",
    ),
    "linear on channels last": (
        lambda n, x: F.linear(x, n.square, n.lasting),
        r"\(4, 4, 4, 4\); only",
    ),
}


def set_channel(x):
    x[:, 0] = 0
    return x


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(case):
    wire, message = REFUSED[case]
    shape = SHAPES["4d"]

    net = Net(wire, shape)
    analytic = Analytic(input_mean=MEAN, input_std=STD)
    with pytest.raises(ConversionError) as caught:
        convert(net, analytic, only=["norm"], example_input=torch.randn(shape))
    text = str(caught.value)
    assert text.startswith("convert: cannot propagate moments to layer 'norm' through ")
    assert text.endswith("with only=[...], or choose another normalizer for it.")
    assert "in 'inner'" in text
    assert re.search(message, text), text


MODULES_REFUSED = [
    (nn.AlphaDropout(0.2), "4d"),
    (nn.FeatureAlphaDropout(0.2), "4d"),
    (nn.Softmax(1), "4d"),
    (nn.Softmax2d(), "4d"),
    (nn.RReLU(), "4d"),
    (nn.GLU(1), "4d"),
    (nn.Threshold(0.1, 2.0), "4d"),
    (nn.Unflatten(1, (4, 1)), "4d"),
    (nn.PixelShuffle(2), "4d"),
    (nn.ChannelShuffle(2), "4d"),
    (nn.Unfold(2), "4d"),
    (nn.LPPool2d(2.0, 2), "4d"),
    (nn.FractionalMaxPool2d(2, output_size=2), "4d"),
    (nn.LocalResponseNorm(2), "4d"),
    (nn.RMSNorm(4), "4d"),
    (nn.Linear(4, 4), "3d"),
    (nn.LayerNorm(4), "3d"),
    (nn.LayerNorm((4, 4)), "3d"),
    (nn.ConvTranspose1d(4, 4, 3, stride=2, dilation=2), "3d"),
    (nn.AvgPool2d(2, divisor_override=3), "4d"),
    (nn.MaxPool2d(2, return_indices=True), "4d"),
    (nn.ReflectionPad1d(1), "2d"),
    (nn.Conv1d(4, 4, 1), "2d"),
    (nn.Embedding(4, 4), "2d"),
]


@pytest.mark.parametrize(("module", "dims"), MODULES_REFUSED, ids=lambda v: str(v)[:30])
def test_modules_that_cannot_be_followed_are_refused_by_name(module, dims):
    shape = SHAPES[dims]

    class First(nn.Sequential):
        def forward(self, x):
            out = super().forward(x.long() % 4 if isinstance(module, nn.Embedding) else x)
            return out[0] if isinstance(out, tuple) else out

    inner = First(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = inner(torch.randn(shape))
    network = nn.Sequential(inner, NORMS[max(2, out.ndim)](out.shape[1]))
    with pytest.raises(ConversionError, match=rf"layer '1' .*'0\.0' \({type(module).__name__}\)"):
        convert(network, Analytic(), only=["1"], example_input=torch.randn(shape))
