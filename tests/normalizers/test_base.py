from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.errors import OptionError, ShapeError
from pyronorm.normalizers import Batch, Group, Instance, LatentNorm, Layer, Population, affine_each
from tests.giving import give


def reference(layer: LatentNorm, x: torch.Tensor, shift, scale) -> torch.Tensor:
    """The definition, on standardized inputs: y = weight * scale * (x_hat + shift) + bias."""
    neutral = LatentNorm(
        layer.normalizer, layer.num_channels, affine=False, channel_last=layer.channel_last
    )
    neutral.train(layer.training)
    neutral.load_state_dict(dict(layer.named_buffers()), strict=False)
    x_hat = neutral(x).movedim(-1, 1) if layer.channel_last else neutral(x)

    def channels(v: torch.Tensor) -> torch.Tensor:
        v = v.reshape(-1, layer.num_channels)
        return v.reshape(*v.shape, *(1,) * (x.ndim - 2))

    weight = torch.ones(layer.num_channels) if layer.weight is None else layer.weight
    bias = torch.zeros(layer.num_channels) if layer.bias is None else layer.bias
    y = channels(weight) * channels(scale) * (x_hat + channels(shift)) + channels(bias)
    return y.movedim(1, -1) if layer.channel_last else y


@pytest.fixture(params=[Batch(), Population(), Group(3), Layer()], ids=lambda n: type(n).__name__)
def normalizer(request):
    return request.param


def make(normalizer, *, affine=True, **options) -> LatentNorm:
    layer = LatentNorm(normalizer, 6, affine=affine, **options)
    if affine:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    if "running_mean" in layer._buffers:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 2), (4, 6, 3, 2, 5)])
@pytest.mark.parametrize("examples", [None, 1, 4])
def test_latents_follow_the_definition(normalizer, shape, affine, examples):
    layer = make(normalizer, affine=affine)
    x = torch.randn(shape) * 2 + 1
    batch = () if examples is None else (examples,)
    shift, scale = torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5
    give(layer, (shift, scale))
    torch.testing.assert_close(layer(x), reference(layer, x, shift, scale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalizer", [Batch(), Population(), Group(3)], ids=str)
@pytest.mark.parametrize("examples", [None, 4])
def test_channel_last_is_channel_first_moved(normalizer, examples):
    # A channel-last layer norm is another function: see test_group.py.
    first, last = make(normalizer), make(normalizer, channel_last=True)
    last.load_state_dict(first.state_dict())
    x = torch.randn(4, 6, 5)
    batch = () if examples is None else (examples,)
    pair = (torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5)
    give(first, pair)
    give(last, pair)
    torch.testing.assert_close(last(x.movedim(1, -1)), first(x).movedim(1, -1))


def test_neutral_latents_are_no_latents(normalizer):
    layer = make(normalizer)
    x = torch.randn(4, 6, 5)
    without = layer(x)
    give(layer, (torch.zeros(6), torch.ones(6)))
    torch.testing.assert_close(layer(x), without)


def test_gradients_reach_latents_weights_and_input(normalizer):
    layer = make(normalizer).double()
    x = torch.randn(4, 6, 3, dtype=torch.double, requires_grad=True)
    shift = torch.randn(6, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(6, dtype=torch.double) + 0.5).requires_grad_()

    def evaluate(x, shift, scale, weight, bias):
        give(layer, (shift, scale))
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(evaluate, (x, shift, scale, layer.weight, layer.bias))


def test_one_kernel_call_and_no_other_pass_over_the_activations(normalizer):
    layer = make(normalizer)
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    x = torch.randn(4, 6, 50, 50)
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        layer(x)
    big = {
        event.name
        for event in profile.events()
        if any(list(shape) == list(x.shape) for shape in event.input_shapes)
    }
    assert not big & {f"aten::{name}" for name in ("mul", "add", "addcmul", "sub", "div", "copy_")}
    assert big & {"aten::batch_norm", "aten::group_norm"}


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_kept(memory_format):
    layer = make(Batch())
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    x = torch.randn(4, 6, 5, 7).to(memory_format=memory_format)
    y = layer(x)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, layer(x.contiguous()))


@pytest.mark.parametrize("examples", [None, 4])
def test_bfloat16_autocast_keeps_statistics_in_float32(normalizer, examples):
    layer = make(normalizer)
    batch = () if examples is None else (examples,)
    give(layer, (torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5))
    # A mean far from 0 would drown the variance if statistics were taken in bfloat16.
    x = (torch.randn(4, 6, 64) + 8).bfloat16()
    exact = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    error = (y.float() - exact).abs() / exact.abs().clamp(min=1)
    # One rounding to bfloat16's 8 bits; per-example maps round x_hat too, then scale it up.
    assert error.max() < (2**-6 if examples is None else 2**-4)


@pytest.mark.parametrize("kind", [Batch(), Instance(), Group(3)], ids=str)
@pytest.mark.parametrize("form", ["latents per example", "no affine map", "bfloat16 network"])
def test_bfloat16_statistics_far_from_zero(kind, form):
    # Without a float32 weight the batch and instance kernels round the mean to bfloat16: by up to
    # 0.25 here, where x is a multiple of 0.5.
    layer = LatentNorm(kind, 6, affine=form != "no affine map")
    x = (torch.randn(4, 6, 64) + 100).bfloat16()
    exact = layer(x.float())
    if form == "latents per example":
        give(layer, (torch.zeros(4, 6), torch.ones(4, 6)))
    if form == "bfloat16 network":
        layer.bfloat16()
    assert (layer(x).float() - exact).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_of_the_input_is_kept(normalizer, dtype):
    layer = make(normalizer).to(dtype)
    x = torch.randn(4, 6, 5, dtype=dtype)
    neutral = layer(x)
    assert neutral.dtype == dtype
    like = torch.promote_types(dtype, torch.float32)
    for examples in ((), (4,)):
        pair = (
            torch.zeros(*examples, 6, dtype=like),
            torch.ones(*examples, 6, dtype=like),
        )
        give(layer, pair)
        y = layer(x)
        assert y.dtype == dtype
        tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(y, neutral, **tolerance)


def test_input_without_the_channels_is_refused_by_name():
    layer = LatentNorm(Batch(), 6)
    layer.name = "stage.bn"
    with pytest.raises(ShapeError, match=r"stage\.bn: .* 6 channels, got \(4, 5, 3\)"):
        layer(torch.randn(4, 5, 3))
    with pytest.raises(ShapeError, match=r"\(batch, \*spatial, channel\)"):
        LatentNorm(Layer(), 6, channel_last=True)(torch.randn(6, 4))


def test_latents_for_another_batch_are_refused():
    layer = LatentNorm(Batch(), 6)
    give(layer, (torch.zeros(3, 6), torch.ones(3, 6)))
    with pytest.raises(ShapeError, match="latents for 3 examples, but the input has 4"):
        layer(torch.randn(4, 6))


def test_no_channels_is_refused():
    with pytest.raises(OptionError, match="num_channels must be at least 1, an integer, got 0"):
        LatentNorm(Batch(), 0)
    with pytest.raises(OptionError, match=r"eps must be finite and not negative, got -0\.1"):
        LatentNorm(Batch(eps=-0.1), 3)


def test_printing_shows_the_kind():
    text = repr(LatentNorm(Group(2), 6, affine=False))
    assert text == "LatentNorm(Group(num_groups=2, eps=None), num_channels=6, affine=False)"
    assert repr(LatentNorm(Layer(), 6, bias=False)).endswith("num_channels=6, bias=False)")


@pytest.mark.parametrize("channel_last", [False, True])
def test_affine_each_is_an_affine_map_per_example(channel_last):
    x = torch.randn(4, 3, 5)
    weight, bias = torch.randn(4, 3), torch.randn(4, 3)
    expected = torch.stack([x[i] * weight[i, :, None] + bias[i, :, None] for i in range(4)])
    moved = x.movedim(1, -1) if channel_last else x
    y = affine_each(moved, weight, bias, channel_last=channel_last)
    torch.testing.assert_close(y.movedim(-1, 1) if channel_last else y, expected)


def test_matches_torch_batch_norm_in_training():
    x = torch.randn(4, 6, 5)
    layer = make(Batch())
    expected = F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, 1e-5)
    torch.testing.assert_close(layer(x), expected)
