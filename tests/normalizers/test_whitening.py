"""Oracles: float64 loops over groups and examples with scipy's root, torch's own layers, gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.normalizers import Batch, BatchWhitening, GroupWhitening, LatentNorm
from pyronorm.stats import Eigen, Newton
from tests.giving import give

C = 6
EPS = 1e-3
SOLVERS = [Newton(4), Eigen()]
# The last one has fewer positions than channels in a group, as has the first.
SHAPES = [(40, C), (9, C, 5), (5, C, 4, 3), (4, C, 2, 3, 4), (13, C, 2)]
NORMALIZERS = [
    kind(size, solver, eps=EPS)
    for kind, size in ((BatchWhitening, 3), (GroupWhitening, 2))
    for solver in SOLVERS
]


def inverse_root(cov: np.ndarray, solver) -> np.ndarray:
    cov = cov + EPS * np.eye(len(cov))
    if isinstance(solver, Eigen):
        return np.linalg.inv(scipy.linalg.sqrtm(cov)).real
    trace, p = np.trace(cov), np.eye(len(cov))
    for _ in range(solver.iterations):
        p = (3 * p - p @ p @ p @ (cov / trace)) / 2
    return p / np.sqrt(trace)


def whiten_rows(rows: np.ndarray, solver, statistics=None) -> np.ndarray:
    mean, cov = statistics or (rows.mean(1), np.cov(rows, bias=True).reshape(len(rows), -1))
    return inverse_root(cov, solver) @ (rows - mean[:, None])


def x_hat(normalizer, x: torch.Tensor) -> torch.Tensor:
    """The definition, in loops."""
    x = x.double()
    result = torch.empty_like(x)
    if isinstance(normalizer, BatchWhitening):
        d = normalizer.channels_per_group
        for first in range(0, x.shape[1], d):
            part = x[:, first : first + d].movedim(1, 0)
            rows = whiten_rows(part.reshape(d, -1).numpy(), normalizer.whiten)
            result[:, first : first + d] = torch.tensor(rows).view(part.shape).movedim(0, 1)
    else:
        for i in range(len(x)):
            rows = x[i].reshape(normalizer.num_groups, -1).numpy()
            result[i] = torch.tensor(whiten_rows(rows, normalizer.whiten)).view(x[i].shape)
    return result


def correlated(shape, dtype=torch.float32) -> torch.Tensor:
    """Channels of different means and scales, each correlated with the next one."""
    x = torch.randn(shape, dtype=dtype)
    factors = torch.linspace(0.5, 2, shape[1], dtype=dtype).view(-1, *(1,) * (len(shape) - 2))
    return (x + 0.6 * x.roll(1, 1)) * factors + factors.flip(0)


def make(normalizer, dtype=torch.float32, affine=True, **options) -> LatentNorm:
    layer = LatentNorm(normalizer, C, affine=affine, **options)
    if affine:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    if isinstance(normalizer, BatchWhitening):
        factor = torch.randn_like(layer.running_cov)
        layer.running_cov.copy_(factor @ factor.mT + 0.5 * torch.eye(factor.shape[-1]))
        layer.running_mean.normal_()
    return layer.to(dtype)


def per_channel(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    vector = vector.reshape(-1, C)
    return vector.view(*vector.shape, *(1,) * (x.ndim - 2))


def draw(*batch, dtype=torch.float32):
    return torch.randn(*batch, C, dtype=dtype), torch.rand(*batch, C, dtype=dtype) + 0.5


@pytest.fixture(params=NORMALIZERS, ids=str)
def normalizer(request):
    return request.param


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_mode_is_the_definition(normalizer, shape, affine):
    layer = make(normalizer, torch.float64, affine)
    x = correlated(shape, torch.float64)
    expected = x_hat(normalizer, x)
    weight = per_channel(layer.weight, x) if affine else 1
    bias = per_channel(layer.bias, x) if affine else 0
    torch.testing.assert_close(layer(x), weight * expected + bias)
    for batch in ((), (1,), (shape[0],)):
        shift, scale = draw(*batch, dtype=torch.float64)
        give(layer, (shift, scale))
        full = weight * per_channel(scale, x) * (expected + per_channel(shift, x)) + bias
        torch.testing.assert_close(layer(x), full)
    if isinstance(normalizer, GroupWhitening):
        training = layer(x)
        assert torch.equal(layer.eval()(x), training)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_mode_whitens_with_the_population(solver, shape):
    layer = make(BatchWhitening(3, solver, eps=EPS), torch.float64).eval()
    x = correlated(shape, torch.float64)
    whitened = torch.empty_like(x)
    for group in range(2):
        some = slice(3 * group, 3 * group + 3)
        statistics = layer.running_mean[some].numpy(), layer.running_cov[group].numpy()
        part = x[:, some].movedim(1, 0)
        rows = whiten_rows(part.reshape(3, -1).numpy(), solver, statistics)
        whitened[:, some] = torch.tensor(rows).view(part.shape).movedim(0, 1)
    expected = per_channel(layer.weight, x) * whitened + per_channel(layer.bias, x)
    torch.testing.assert_close(layer(x), expected)
    shift, scale = draw(shape[0], dtype=torch.float64)
    give(layer, (shift, scale))
    weight = per_channel(layer.weight, x) * per_channel(scale, x)
    expected = weight * (whitened + per_channel(shift, x)) + per_channel(layer.bias, x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_eigen_gives_the_identity_covariance(shape):
    x = correlated(shape)
    y = LatentNorm(BatchWhitening(3, Eigen(), eps=1e-7), C)(x)
    for group in y.movedim(1, 0).flatten(1).split(3):
        torch.testing.assert_close(torch.cov(group, correction=0), torch.eye(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(group.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    if len(shape) == 5:  # 24 positions: each example has a covariance of its own
        y = LatentNorm(GroupWhitening(2, Eigen(), eps=1e-7), C)(x)
        for example in y.flatten(2).unflatten(1, (2, 3)).flatten(2):
            cov = torch.cov(example, correction=0)
            torch.testing.assert_close(cov, torch.eye(2), rtol=0, atol=1e-4)


def test_newton_approaches_the_identity_covariance():
    x = correlated((50, C, 4, 5))
    distances = []
    for iterations in (1, 3, 5, 7, 9):
        y = LatentNorm(BatchWhitening(3, Newton(iterations), eps=1e-7), C, affine=False)(x)
        groups = y.movedim(1, 0).flatten(1).split(3)
        values = torch.stack([torch.linalg.eigvalsh(torch.cov(g, correction=0)) for g in groups])
        assert values.max() < 1 + 1e-4
        distances.append(float(1 - values.min()))
    assert distances == sorted(distances, reverse=True)
    # Three channels, condition number below 12 (measured over seeds: 5 and 8 to 10).
    assert distances[2] < 0.06
    assert distances[-1] < 1e-4


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_channel_per_group_is_batch_normalization(solver, shape):
    layer, batch = make(BatchWhitening(1, solver)), LatentNorm(Batch(), C)
    batch.load_state_dict(layer.state_dict(), strict=False)
    batch.running_var.copy_(layer.running_cov.flatten())
    x = correlated(shape)
    for training in (True, False):
        expected = batch.train(training)(x)
        torch.testing.assert_close(layer.train(training)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_group_is_layer_normalization(solver, shape):
    layer = make(GroupWhitening(1, solver))
    x = correlated(shape)
    torch.testing.assert_close(layer(x), F.group_norm(x, 1, layer.weight, layer.bias))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, C, 5), (9, C)])
def test_gradients_reach_everything(normalizer, training, shape):
    layer = make(normalizer, torch.float64).train(training)
    x = correlated(shape, torch.float64).requires_grad_()
    latents = [v.requires_grad_() for v in draw(dtype=torch.float64)]

    def evaluate(x, shift, scale, weight, bias):
        give(layer, (shift, scale))
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(evaluate, (x, *latents, layer.weight, layer.bias))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_vmap_over_latents_and_inputs_equals_a_loop(normalizer, training, shape):
    layer = make(normalizer).train(training)
    x = torch.stack([correlated(shape) for _ in range(3)])
    for batch in ((1,), (shape[0],)):
        shift, scale = draw(3, *batch)

        def evaluate(x, shift, scale):
            give(layer, (shift, scale))
            return layer(x)

        for inputs, axis in ((x, 0), (x[0], None)):
            together = torch.func.vmap(evaluate, (axis, 0, 0))(inputs, shift, scale)
            one_by_one = inputs if axis == 0 else [inputs] * 3
            loop = [evaluate(*p) for p in zip(one_by_one, shift, scale, strict=True)]
            torch.testing.assert_close(together, torch.stack(loop), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_examples_and_channels_is_carried_through(normalizer, training):
    layer = make(normalizer, affine=False).train(training)
    x = correlated((11, C, 4, 3))
    order = torch.randperm(11)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], rtol=1e-4, atol=1e-5)
    # Channels of a group for batch whitening, groups for group whitening.
    order = [2, 0, 1, 4, 3, 5] if isinstance(normalizer, BatchWhitening) else [3, 4, 5, 0, 1, 2]
    moved = make(normalizer, affine=False).train(training)
    if isinstance(normalizer, BatchWhitening):
        moved.running_mean.copy_(layer.running_mean[order])
        whole = torch.block_diag(*layer.running_cov)[order][:, order]
        moved.running_cov.copy_(torch.stack([whole[:3, :3], whole[3:, 3:]]))
    torch.testing.assert_close(moved(x[:, order]), layer(x)[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_running_writes_no_buffer(normalizer, training):
    layer = make(normalizer).train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(correlated((7, C, 5)))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("examples", [None, 5])
def test_channels_last_in_memory_gives_the_same(normalizer, training, examples):
    layer = make(normalizer).train(training)
    give(layer, draw() if examples is None else draw(examples))
    x = correlated((5, C, 4, 3))
    y = layer(x)
    last = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=1e-4, atol=1e-4)
    if examples is None:
        assert y.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
    volume = correlated((4, C, 2, 3, 4))
    give(layer, None)
    last = layer(volume.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(last, layer(volume), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [None, 5])
def test_a_channel_last_layer_is_a_channel_first_layer_moved(normalizer, examples):
    first = make(normalizer)
    last = make(normalizer, channel_last=True)
    last.load_state_dict(first.state_dict())
    pair = draw() if examples is None else draw(examples)
    give(first, pair)
    give(last, pair)
    x = correlated((5, C, 7))
    expected = first(x).movedim(1, -1)
    torch.testing.assert_close(last(x.movedim(1, -1)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("examples", [None, 5])
def test_bfloat16_autocast_keeps_statistics_in_float32(normalizer, examples, training):
    layer = make(normalizer).train(training)
    give(layer, draw() if examples is None else draw(examples))
    # A mean far from 0 would drown the covariances if they were taken in bfloat16.
    x = (correlated((5, C, 64)) + 8).bfloat16()
    exact = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert layer(x.float()).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    error = (y.float() - exact).abs() / exact.abs().clamp(min=1)
    assert error.max() < 2**-8  # one rounding to bfloat16's 8 bits, after everything else


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_networks(normalizer, dtype, training):
    layer = make(normalizer).train(training)
    if isinstance(normalizer, BatchWhitening):
        layer.running_mean.zero_()
        layer.running_cov.copy_(torch.tensor([[2.0, 0.3, 0], [0.3, 1, 0.4], [0, 0.4, 1.5]]))
    x = correlated((5, C, 7)).to(dtype)
    expected = layer(x.float())
    y = layer.to(dtype)(x)
    assert y.dtype == dtype
    # Rounding of weight, bias, output; in evaluation mode also of covariances, and their margin.
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_covariance_is_still_positive_definite(dtype):
    # Three almost equal channels, until rounding makes an eigenvalue negative.
    smallest = torch.tensor(1.0)
    while smallest > -1e-5:
        rows = torch.ones(3, 1) + torch.randn(3, 2) * torch.finfo(dtype).eps ** 0.5 / 2
        cov = rows @ rows.mT / 2
        smallest = torch.linalg.eigvalsh(cov.to(dtype).float())[0]
    layer = LatentNorm(BatchWhitening(3, Eigen(), eps=1e-7), 3, affine=False).eval()
    layer.running_cov.copy_(cov[None])
    root = layer.to(dtype)(torch.eye(3, dtype=dtype)).float()
    assert root.isfinite().all()
    assert torch.linalg.eigvalsh((root + root.mT) / 2)[-1] < 100  # not blown up


@pytest.mark.parametrize("fill", [0.0, 3.0])
def test_constant_inputs_give_the_bias(normalizer, fill):
    layer = make(normalizer)
    x = torch.full((7, C, 5), fill, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, layer.bias[:, None].expand_as(y))
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_dead_and_repeated_channels_stay_finite(normalizer):
    layer = make(normalizer)
    x = correlated((7, C, 5)) * 100
    x[:, 1] = 0
    x[:, 3:] = x[:, :3]
    x.requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3, C), (1, C, 3), (1, C, 1, 2)])
def test_too_few_values_for_a_covariance_are_refused_by_name(shape):
    layer = LatentNorm(BatchWhitening(3), C)
    layer.name = "stage.norm"
    count = shape[0] * torch.Size(shape[2:]).numel()
    match = rf"stage\.norm: the covariance of 3 channels needs at least 4 values .* got {count} "
    with pytest.raises(ShapeError, match=match):
        layer(torch.randn(shape))
    layer.eval()(torch.randn(shape))  # the population has its covariance already


@pytest.mark.parametrize("training", [True, False])
def test_too_few_values_in_an_example_are_refused_by_name(training):
    layer = LatentNorm(GroupWhitening(3), C).train(training)
    layer.name = "stage.norm"
    match = r"stage\.norm: the covariance of 3 groups needs at least 4 values .* got 2 "
    with pytest.raises(ShapeError, match=match):
        layer(torch.randn(9, C))
    layer(torch.randn(9, C, 2))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="channels_per_group=4 does not divide 6 channels"):
        LatentNorm(BatchWhitening(4), C)
    with pytest.raises(OptionError, match="num_groups=4 does not divide 6 channels"):
        LatentNorm(GroupWhitening(4), C)
    with pytest.raises(
        OptionError, match="channels_per_group must be at least 1, an integer, got 0"
    ):
        BatchWhitening(0)
    with pytest.raises(OptionError, match="num_groups must be at least 1, an integer, got -2"):
        GroupWhitening(-2)
    for kind in (BatchWhitening, GroupWhitening):
        with pytest.raises(OptionError, match=f"{kind.__name__}: eps must be positive, got 0"):
            LatentNorm(kind(2, eps=0.0), C)


@pytest.mark.parametrize("normalizer", [BatchWhitening(3, Eigen()), GroupWhitening(3, Eigen())])
def test_inputs_that_are_not_finite_are_named(normalizer):
    layer = LatentNorm(normalizer, C)
    layer.name = "norm3"
    x = torch.randn(7, C, 5)
    x[2, 1, 3] = torch.nan
    with pytest.raises(StatisticsError, match="norm3: .* its inputs are not finite"):
        layer(x)


def test_recorded_moments_are_mean_and_biased_covariance():
    layer = make(BatchWhitening(3))
    seen = []
    layer.recorder = lambda layer, moments: seen.append(moments)
    for shape in SHAPES:
        x = correlated(shape).requires_grad_()
        y = layer(x)
        moments = seen.pop()
        rows = x.detach().double().movedim(1, 0).flatten(1)
        assert moments.count == rows.shape[1]
        assert not moments.mean.requires_grad
        assert not moments.cov.requires_grad
        cov = torch.stack([torch.cov(group, correction=0) for group in rows.split(3)])
        torch.testing.assert_close(moments.mean.double(), rows.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.cov.double(), cov, rtol=1e-5, atol=1e-6)
        variances = cov.diagonal(dim1=1, dim2=2).flatten()
        torch.testing.assert_close(moments.var.double(), variances, rtol=1e-5, atol=1e-6)
        layer.recorder, recorder = None, layer.recorder
        assert torch.equal(layer(x), y)
        layer.recorder = recorder


def test_printing_shows_the_kind():
    text = repr(LatentNorm(BatchWhitening(3, Newton(4)), C))
    assert "BatchWhitening(channels_per_group=3, whiten=Newton(iterations=4), eps=None)" in text
