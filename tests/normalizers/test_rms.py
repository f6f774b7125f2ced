from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.normalizers import RMS, LatentNorm
from tests.giving import give
from tests.normalizers.test_group import randomize


def make(affine=True, bias=True, *, eps=1e-2, **options) -> LatentNorm:
    layer = randomize(LatentNorm(RMS(eps=eps), 6, affine=affine, bias=bias, **options))
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def by_definition(layer: LatentNorm, x: torch.Tensor, shift=None, scale=None) -> torch.Tensor:
    """y = weight * scale * (x_hat + shift) + bias in float64, channel axis moved last."""
    x = x.double()
    axes = (-1,) if layer.channel_last else tuple(range(1, x.ndim))
    x_hat = x / (x.square().mean(axes, keepdim=True) + layer.normalizer.eps).sqrt()
    x_hat = x_hat if layer.channel_last else x_hat.movedim(1, -1)

    def per_channel(v, neutral):
        if v is None:
            return torch.full((6,), neutral).double()
        v = v.detach().double()
        return v if v.ndim == 1 else v.view(-1, *(1,) * (x.ndim - 2), 6)

    y = per_channel(layer.weight, 1.0) * per_channel(scale, 1.0) * (
        x_hat + per_channel(shift, 0.0)
    ) + per_channel(layer.bias, 0.0)
    return y if layer.channel_last else y.movedim(-1, 1)


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 3, 5, 6)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-2, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channel_last_equals_torch(shape, affine, eps, dtype):
    theirs = randomize(nn.RMSNorm(6, eps=eps, elementwise_affine=affine)).to(dtype)
    ours = LatentNorm(RMS(eps=eps), 6, affine=affine, bias=False, channel_last=True).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    # so small that the machine epsilon of the dtype is seen
    x = torch.randn(shape, dtype=dtype) * (3 if eps else torch.finfo(dtype).eps ** 0.5)
    assert torch.equal(ours(x), theirs(x))
    assert ours.train()(x).dtype == dtype


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 5), (4, 6, 2, 3, 5)])
def test_channel_first_runs_over_channels_and_positions(shape):
    ours = LatentNorm(RMS(), 6, affine=False)
    x = torch.randn(shape) * torch.finfo(torch.float32).eps ** 0.5
    expected = nn.RMSNorm(shape[1:], elementwise_affine=False)(x)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("examples", [None, 1, 4])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("latent", [True, False])
def test_latents_follow_the_definition(channel_last, affine, bias, examples, latent):
    layer = make(affine, bias, channel_last=channel_last)
    x = torch.randn(4, 3, 5, 6) if channel_last else torch.randn(4, 6, 3, 5)
    shift = scale = None
    if latent:
        batch = () if examples is None else (examples,)
        shift, scale = torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5
        give(layer, (shift, scale))
    expected = by_definition(layer, x, shift, scale)
    torch.testing.assert_close(layer(x), expected.float(), rtol=1e-5, atol=1e-5)


def test_a_mean_is_not_taken_off():
    x = torch.full((2, 6, 5), 3.0)
    torch.testing.assert_close(LatentNorm(RMS(eps=0.0), 6)(x), torch.ones(2, 6, 5))


@pytest.mark.parametrize("channel_last", [True, False])
def test_gradients_reach_everything(channel_last):
    layer = make(channel_last=channel_last).double()
    shape = (2, 4, 6) if channel_last else (2, 6, 4)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    shift = torch.randn(6, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(6, dtype=torch.double) + 0.5).requires_grad_()

    def evaluate(x, shift, scale, weight, bias):
        give(layer, (shift, scale))
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(evaluate, (x, shift, scale, layer.weight, layer.bias))


@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("examples", [1, 4])
def test_vmap_over_latents_equals_a_loop(channel_last, examples):
    layer = make(channel_last=channel_last)
    x = torch.randn(4, 5, 6) if channel_last else torch.randn(4, 6, 5)
    shift, scale = torch.randn(7, examples, 6), torch.rand(7, examples, 6) + 0.5

    def evaluate(shift, scale):
        give(layer, (shift, scale))
        return layer(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop)


@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("examples", [None, 4])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_keeps_statistics_in_float32(channel_last, examples, autocast):
    layer = make(channel_last=channel_last, eps=None)
    batch = () if examples is None else (examples,)
    give(layer, (torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5))
    # 600 squares of about 1 added up in bfloat16, which has 8 bits, would stop at 256
    x = (torch.randn(4, 100, 6) if channel_last else torch.randn(4, 6, 100)).bfloat16()
    exact = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert ((y.float() - exact).abs() / exact.abs().clamp(min=1)).max() < 2**-6


def test_memory_format_is_kept():
    layer = make()
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    x = torch.randn(4, 6, 5, 7).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x.contiguous()))


def test_one_pass_over_the_activations_beside_the_statistics():
    layer = make()
    give(layer, (torch.randn(6), torch.rand(6) + 0.5))
    x = torch.randn(4, 6, 50, 50)
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        layer(x)
    big = [
        event.name
        for event in profile.events()
        if any(list(shape) == list(x.shape) for shape in event.input_shapes)
    ]
    assert sorted(name for name in big if name not in ("aten::to", "aten::view")) == [
        "aten::addcmul",
        "aten::linalg_vector_norm",
    ]
