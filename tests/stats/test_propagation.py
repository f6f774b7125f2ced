from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyronorm.stats.propagation import (
    adaptive_window,
    average_moments,
    clipped_moments,
    convolution_moments,
    dropout_moments,
    elementwise_moments,
    interpolation_moments,
    leaky_relu_moments,
    linear_moments,
    maximum_moments,
    product_moments,
    transposed_convolution_moments,
)

_X, _W = np.polynomial.legendre.leggauss(24)


def integrate(f, mean: float, std: float, features=(0.0,)) -> tuple[float, float]:
    """Mean and variance of f of a Gaussian, integrated piece by piece between its features."""
    steps = [s * d for d in (0, 0.1, 0.3, 1, 3, 10, 30) for s in (1, -1)]
    cuts = [(k + d - mean) / std for k in features for d in steps]
    cuts = sorted({c for c in cuts if -12 < c < 12} | set(np.linspace(-12, 12, 49)))
    left, right = np.array(cuts[:-1])[:, None], np.array(cuts[1:])[:, None]
    z = torch.from_numpy((left + right) / 2 + (right - left) / 2 * _X).flatten()
    mass = torch.from_numpy((right - left) / 2 * _W).flatten()
    mass = mass * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    y = f(mean + std * z)
    out = float(mass @ y)
    return out, float(mass @ (y - out).square())


def grid(means, stds) -> list[tuple[float, float]]:
    return [(m, s) for m in means for s in stds]


MEANS = (-1e4, -30.0, -6.0, -1.3, -0.2, 0.0, 0.4, 2.0, 9.0, 1e4)
STDS = (1e-2, 1.0, 3.0, 40.0)
GRID = grid(MEANS, STDS)  # |mean / std| from 0 to 1e6


def moments_on(points, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    mean = torch.tensor([m for m, _ in points], dtype=dtype)
    return mean, torch.tensor([s * s for _, s in points], dtype=dtype)


def expected_on(points, function, features=(0.0,)) -> tuple[Tensor, Tensor]:
    pairs = [integrate(function, *point, features) for point in points]
    return moments_from(pairs)


def moments_from(pairs) -> tuple[Tensor, Tensor]:
    mean, var = zip(*pairs, strict=True)
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64)


def assert_moments(found, expected, points, rtol: float) -> None:
    """Errors of the mean relative to mean and std of the input, of the variance to its variance."""
    mean, var = moments_on(points)
    error = (found[0].double() - expected[0]).abs() / (mean.abs() + var.sqrt())
    assert error.max() < rtol, (error.max(), points[int(error.argmax())])
    error = (found[1].double() - expected[1]).abs() / var
    assert error.max() < rtol, (error.max(), points[int(error.argmax())])


def test_the_oracle_knows_the_gaussian():
    for point in GRID:
        mean, var = integrate(lambda x: x, *point)
        assert mean == pytest.approx(point[0], rel=1e-12, abs=1e-12)
        assert var == pytest.approx(point[1] ** 2, rel=1e-11)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 1.0, -1.0, 2.0])
def test_leaky_relu_is_exact(slope):
    expected = expected_on(GRID, lambda x: torch.where(x > 0, x, slope * x))
    found = leaky_relu_moments(moments_on(GRID), slope)
    assert_moments(found, expected, GRID, 1e-10)
    # a slope per channel, and a slope of its own for each channel
    per_channel = torch.linspace(-1, 1.5, len(GRID), dtype=torch.float64)
    each = [
        integrate(lambda x, a=a: torch.where(x > 0, x, a * x), *p)
        for a, p in zip(per_channel, GRID, strict=True)
    ]
    assert_moments(
        leaky_relu_moments(moments_on(GRID), per_channel), moments_from(each), GRID, 1e-10
    )


def test_relu_is_relatively_exact_in_its_tail():
    """Far below 0 little is left: relative to what is left, 5 digits at 8 standard deviations."""
    points = grid((-1.0, -3.0, -5.0, -8.0), (1.0,))
    expected = expected_on(points, F.relu)
    found = leaky_relu_moments(moments_on(points))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_float32_is_accurate_to_the_last_digits():
    """Relative to the input's scale: 3e-7 in the mean, 1e-6 in the variance."""
    # The same float32 numbers in both precisions, since Phi(mean / std) amplifies a rounded input.
    mean, var = moments_on(GRID, torch.float32)
    for slope in (0.0, 0.3, -1.0):
        found = leaky_relu_moments((mean, var), slope)
        exact = leaky_relu_moments((mean.double(), var.double()), slope)
        assert ((found[0] - exact[0]).abs() / (mean.abs() + var.sqrt())).max() < 3e-7
        assert ((found[1] - exact[1]).abs() / var).max() < 1e-6
    found = clipped_moments((mean, var), -0.5, 6)
    exact = clipped_moments((mean.double(), var.double()), -0.5, 6)
    assert ((found[0] - exact[0]).abs()).max() < 3e-6  # of a range of 6.5
    assert ((found[1] - exact[1]).abs() / var.clamp(max=6.5**2)).max() < 3e-6


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (-0.3, 2.5), (-1e4, 0.5)])
def test_clipped_is_exact(low, high):
    expected = expected_on(GRID, lambda x: x.clamp(low, high), (low, high))
    found = clipped_moments(moments_on(GRID), low, high)
    assert_moments(found, expected, GRID, 1e-10)
    tiny = 1e-12 * (high - low)
    assert ((found[0] >= low - tiny) & (found[0] <= high + tiny)).all()
    assert ((found[1] >= 0) & (found[1] <= (high - low) ** 2 / 4 + tiny)).all()


SMOOTH = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(x, beta=1.5),
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "exp": torch.exp,
    "sin": torch.sin,
    "square": torch.square,
}
KINKS = {
    "hardswish": (F.hardswish, (-3.0, 3.0)),
    "hardsigmoid": (F.hardsigmoid, (-3.0, 3.0)),
    "elu": (lambda x: F.elu(x, 0.7), (0.0,)),
    "selu": (F.selu, (0.0,)),
    "celu": (lambda x: F.celu(x, 0.6), (0.0,)),
    "softsign": (F.softsign, (0.0,)),
    "softshrink": (F.softshrink, (-0.5, 0.5)),
}
USUAL = grid((-6.0, -2.0, -0.7, 0.0, 0.3, 1.0, 4.0), (0.1, 0.5, 1.0, 2.0))


def relative(found, expected) -> tuple[float, float]:
    """Largest error of the mean in standard deviations, and of the variance, of the output."""
    mean = (found[0] - expected[0]).abs() / expected[1].sqrt()
    return float(mean.max()), float((found[1] / expected[1] - 1).abs().max())


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_up_to_a_std_of_two(name):
    expected = expected_on(USUAL, SMOOTH[name])
    found = elementwise_moments(moments_on(USUAL), SMOOTH[name])
    mean, var = relative(found, expected)
    assert mean < 3e-5
    assert var < 3e-4


@pytest.mark.parametrize("name", KINKS)
def test_functions_with_kinks(name):
    function, kinks = KINKS[name]
    # where the function is not constant
    points = [p for p in USUAL if integrate(function, *p, kinks)[1] > 0.01 * p[1] ** 2]
    assert len(points) > len(USUAL) / 2
    expected = expected_on(points, function, kinks)
    mean, var = relative(elementwise_moments(moments_on(points), function), expected)
    assert mean < 0.01
    assert var < 0.02


@pytest.mark.parametrize(("std", "bound"), [(5.0, 0.04), (20.0, 0.15)])
def test_steep_functions_lose_digits_as_stated(std, bound):
    points = grid((-6.0, -0.7, 0.0, 1.0, 4.0), (std,))
    for name in ("gelu", "silu", "mish", "sigmoid", "tanh", "softplus"):
        expected = expected_on(points, SMOOTH[name])
        assert (
            max(relative(elementwise_moments(moments_on(points), SMOOTH[name]), expected)) < bound
        )


def test_quadrature_agrees_with_the_closed_forms():
    points = grid((-2.0, 0.3, 1.0), (0.5, 2.0))
    closed = leaky_relu_moments(moments_on(points), 0.1)
    found = elementwise_moments(moments_on(points), lambda x: F.leaky_relu(x, 0.1))
    mean, var = relative(found, closed)
    assert mean < 0.01
    assert var < 0.01


@pytest.mark.parametrize("count", [1, 2, 3, 9, 49])
def test_maximum_is_the_order_statistic(count):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    mass = (torch.special.ndtr(z) ** count).diff()
    middle = (z[1:] + z[:-1]) / 2
    largest = mass @ middle
    spread = mass @ (middle - largest).square()
    mean, var = maximum_moments(moments_on(GRID), count)
    torch.testing.assert_close(mean, moments_on(GRID)[0] + largest * moments_on(GRID)[1].sqrt())
    torch.testing.assert_close(var, spread * moments_on(GRID)[1], rtol=1e-5, atol=0)
    closed = {1: (0, 1), 2: (1 / math.sqrt(math.pi), 1 - 1 / math.pi)}
    closed[3] = (1.5 / math.sqrt(math.pi), 1 + math.sqrt(3) / (2 * math.pi) - 9 / (4 * math.pi))
    if count in closed:
        assert float(largest) == pytest.approx(closed[count][0], abs=1e-6)
        assert float(spread) == pytest.approx(closed[count][1], rel=1e-6)


def test_dropout_product_and_average_from_second_moments():
    x, y = moments_on(GRID), moments_on(GRID[::-1])
    mean, var = dropout_moments(x, 0.3)
    torch.testing.assert_close(mean, x[0])
    torch.testing.assert_close(var + mean.square(), (x[1] + x[0].square()) / 0.7)
    assert all((part == 0).all() for part in dropout_moments(x, 1.0))
    torch.testing.assert_close(dropout_moments(x, 0.0), x)
    mean, var = product_moments(x, y)
    torch.testing.assert_close(mean, x[0] * y[0])
    second = (x[1] + x[0].square()) * (y[1] + y[0].square())
    torch.testing.assert_close(var + mean.square(), second)
    torch.testing.assert_close(average_moments(x, 6), (x[0], x[1] / 6))


def test_monte_carlo_agrees():
    """All operations at once on 4e5 draws; |z| < 5 for 24 figures: false alarms below 2e-5."""
    n = 400_000
    mean = torch.tensor([-0.8, 0.3, 2.0], dtype=torch.float64)
    std = torch.tensor([0.5, 1.5, 0.7], dtype=torch.float64)
    x = mean + std * torch.randn(n, 3, dtype=torch.float64)
    y = mean.flip(0) + std * torch.randn(n, 3, dtype=torch.float64)
    given, other = (mean, std.square()), (mean.flip(0), std.square())
    pairs = [
        (leaky_relu_moments(given, 0.2), F.leaky_relu(x, 0.2)),
        (clipped_moments(given, 0, 1), x.clamp(0, 1)),
        (product_moments(given, other), x * y),
        (dropout_moments(given, 0.4), F.dropout(x, 0.4)),
    ]
    for (m, v), sample in pairs:
        centred = (sample - m).square()
        assert ((sample.mean(0) - m).abs() / (sample.std(0) / math.sqrt(n))).max() < 5
        assert ((centred.mean(0) - v).abs() / (centred.std(0) / math.sqrt(n))).max() < 5


def random_moments(channels: int) -> tuple[Tensor, Tensor]:
    mean = torch.randn(channels, dtype=torch.float64)
    return mean, torch.rand(channels, dtype=torch.float64) + 0.1


def dense(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, torch.Size]:
    """The matrix of a linear layer without bias on inputs of that shape, and its output's shape."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    bias, layer.bias = layer.bias, None
    out = layer(basis)
    layer.bias = bias
    return out.flatten(1).T, out.shape[1:]


def exact_linear(layer, x, shape) -> tuple[Tensor, Tensor]:
    """Moments at each output, by the covariance algebra of independent inputs."""
    matrix, out = dense(layer, shape)
    mean, var = (part[:, None].expand(-1, math.prod(shape[1:])).flatten() for part in x)
    bias = 0 if layer.bias is None else layer.bias.view(-1, *(1,) * (len(out) - 1))
    return (matrix @ mean).view(out) + bias, (matrix.square() @ var).view(out)


def test_linear_against_the_covariance():
    layer = nn.Linear(4, 6).double()
    x = random_moments(4)
    covariance = layer.weight @ x[1].diag() @ layer.weight.T
    mean, var = linear_moments(x, layer.weight, layer.bias)
    torch.testing.assert_close(mean, layer(x[0]))
    torch.testing.assert_close(var, covariance.diag())
    torch.testing.assert_close(linear_moments(x, layer.weight)[0], mean - layer.bias)


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, bias=False), (4, 9)),
    (nn.Conv1d(4, 6, 1, groups=2), (4, 3)),
    (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2)), (4, 5, 6)),
    (nn.Conv2d(4, 8, (2, 3), groups=4, stride=(1, 2)), (4, 3, 7)),
    (nn.Conv3d(4, 6, (1, 2, 3), groups=2, stride=(2, 1, 1)), (4, 3, 3, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: str(v)[:40])
def test_convolution_against_the_dense_map(layer, shape):
    layer = layer.double()
    x = random_moments(shape[0])
    mean, var = convolution_moments(x, layer.weight, layer.bias, layer.groups)
    expected = exact_linear(layer, x, shape)
    for found, at_each in zip((mean, var), expected, strict=True):
        at_each = at_each.flatten(1)  # no padding, so all positions are alike
        torch.testing.assert_close(found[:, None].expand_as(at_each), at_each)


TRANSPOSED = [
    (nn.ConvTranspose1d(4, 6, 5, stride=3, bias=False), (4, 8)),
    (nn.ConvTranspose1d(4, 6, 2, stride=3), (4, 8)),  # gaps between the kernels
    (nn.ConvTranspose1d(4, 6, 3, dilation=2, groups=2), (4, 11)),
    (nn.ConvTranspose2d(4, 6, (3, 4), stride=(1, 2), groups=2), (4, 7, 8)),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 2)), (4, 6, 6)),
    (nn.ConvTranspose3d(4, 6, (1, 2, 3), stride=(2, 1, 2), groups=2), (4, 4, 4, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), TRANSPOSED, ids=lambda v: str(v)[:40])
def test_transposed_convolution_over_its_phases(layer, shape):
    layer = layer.double()
    x = random_moments(shape[0])
    mean, var = exact_linear(layer, x, shape)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=1
    ):
        border = -(-(kernel - 1) * dilation // stride) * stride  # a whole number of phases
        inner = (mean.shape[axis] - 2 * border) // stride * stride
        assert inner > 0
        mean, var = mean.narrow(axis, border, inner), var.narrow(axis, border, inner)
    mean, var = mean.flatten(1), var.flatten(1)
    found = transposed_convolution_moments(x, layer.weight, layer.bias, layer.groups, layer.stride)
    torch.testing.assert_close(found[0], mean.mean(1))
    torch.testing.assert_close(found[1], var.mean(1) + mean.var(1, correction=0))


class Function(nn.Module):
    """A function of positions, as a layer without a bias."""

    bias = None

    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(("old", "new"), [((6,), (3,)), ((5, 7), (3, 2)), ((2, 3), (5, 7))])
def test_adaptive_window_against_the_dense_map(old, new):
    x = random_moments(1)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)[len(old) - 1]
    mean, var = exact_linear(Function(lambda y: pool(y, new)), x, (1, *old))
    torch.testing.assert_close(mean.mean()[None], x[0])
    torch.testing.assert_close(var.mean()[None], x[1] / adaptive_window(old, new))


SIZES = [((5,), (8,)), ((5, 4), (3, 9)), ((3, 4, 5), (6, 7, 2))]
INTERPOLATIONS = [
    (old, new, mode, options)
    for old, new in SIZES
    for mode, options in (
        ("nearest", {}),
        ("nearest-exact", {}),
        ("area", {}),
        (("linear", "bilinear", "trilinear")[len(old) - 1], {"align_corners": False}),
        (("linear", "bilinear", "trilinear")[len(old) - 1], {"align_corners": True}),
    )
]
INTERPOLATIONS += [
    (*SIZES[1], mode, options)  # for images only
    for mode in ("bilinear", "bicubic")
    for options in ({"antialias": True}, {"align_corners": True})
]


@pytest.mark.parametrize(("old", "new", "mode", "options"), INTERPOLATIONS, ids=str)
def test_interpolation_against_the_dense_map(old, new, mode, options):
    x = random_moments(1)
    layer = Function(lambda y: F.interpolate(y, size=new, mode=mode, **options))
    mean, var = exact_linear(layer, x, (1, *old))
    found = interpolation_moments(x, old, new, mode, **options)
    torch.testing.assert_close(mean, found[0].expand(1, *new).expand_as(mean))
    torch.testing.assert_close(var.mean()[None], found[1])


FUNCTIONS = {
    "relu": lambda x: leaky_relu_moments(x),
    "leaky": lambda x: leaky_relu_moments(x, 0.3),
    "absolute": lambda x: leaky_relu_moments(x, -1.0),
    "clipped": lambda x: clipped_moments(x, -0.2, 1.4),
    "gelu": lambda x: elementwise_moments(x, F.gelu),
    "maximum": lambda x: maximum_moments(x, 4),
    "average": lambda x: average_moments(x, 4),
    "dropout": lambda x: dropout_moments(x, 0.3),
    "product": lambda x: product_moments(x, (x[1], x[0].square())),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    mean = torch.tensor([-7.0, -1.3, 0.0, 0.4, 1.4, 20.0], dtype=torch.float64)
    var = torch.tensor([1.0, 0.3, 2.0, 0.01, 1.0, 4.0], dtype=torch.float64)
    inputs = (mean.requires_grad_(), var.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, v: FUNCTIONS[name]((m, v)), inputs)
    assert torch.autograd.gradgradcheck(lambda m, v: FUNCTIONS[name]((m, v)), inputs, atol=1e-4)


def test_gradients_of_slopes_weights_and_biases():
    x = tuple(part.requires_grad_() for part in random_moments(4))
    slope = torch.tensor([0.2, -1, 0, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v, a: leaky_relu_moments((m, v), a), (*x, slope))
    functions = [
        (nn.Linear(4, 3), lambda x, w, b: linear_moments(x, w, b)),
        (nn.Conv2d(4, 3, (2, 3)), lambda x, w, b: convolution_moments(x, w, b)),
        (nn.Conv1d(4, 6, 3, groups=2), lambda x, w, b: convolution_moments(x, w, b, 2)),
        (
            nn.ConvTranspose1d(4, 6, 3, groups=2),
            lambda x, w, b: transposed_convolution_moments(x, w, b, 2, (2,)),
        ),
    ]
    for layer, function in functions:
        layer.double()
        inputs = (*x, layer.weight, layer.bias)
        assert torch.autograd.gradcheck(lambda m, v, w, b, f=function: f((m, v), w, b), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_weight_of_zero_has_finite_gradients(name, dtype):
    """Variance 0, wherever the mean is: at 0, at a bound, far away, next to nothing."""
    bias = torch.tensor([0.0, -0.2, 1.4, -3, 1e4, -1e4, 1e-10, 1e-20], dtype=dtype)
    bias.requires_grad_()
    weight = torch.zeros(8, 3, 2, dtype=dtype, requires_grad=True)
    x = (torch.randn(3, dtype=dtype), torch.rand(3, dtype=dtype))
    mean, var = FUNCTIONS[name](convolution_moments(x, weight, bias))
    assert (var <= 1e-12 * (1 + bias.square())).all() or name in ("dropout", "product")
    assert mean.isfinite().all()
    for part in (mean, var):
        grads = torch.autograd.grad(
            part.sum(), (weight, bias), retain_graph=True, allow_unused=True
        )
        assert all(g is None or g.isfinite().all() for g in grads)


def test_at_variance_zero_the_functions_are_applied():
    mean = torch.tensor([-2.0, -0.1, 0.5, 3.0], dtype=torch.float64)
    x = (mean, torch.zeros(4, dtype=torch.float64))
    for (m, v), y in (
        (leaky_relu_moments(x, 0.3), F.leaky_relu(mean, 0.3)),
        (clipped_moments(x, 0, 1), mean.clamp(0, 1)),
        (elementwise_moments(x, torch.tanh), mean.tanh()),
        (maximum_moments(x, 5), mean),
    ):
        torch.testing.assert_close(m, y, atol=1e-9, rtol=0)
        assert v.max() < 1e-18


def test_half_of_nothing_is_known():
    """A published shortcut is 48 % off at a = 0.25; ours is the integral."""
    a = torch.tensor([0.25], dtype=torch.float64)
    _, var = leaky_relu_moments((a, torch.ones(1, dtype=torch.float64)))
    _, exact = integrate(F.relu, 0.25, 1.0)
    assert float(var) == pytest.approx(exact, rel=1e-10)
    shortcut = float(torch.sigmoid(a / 0.3758))
    assert shortcut / exact > 1.4
