from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.errors import OptionError, ShapeError
from pyronorm.normalizers import Group, Instance, LatentNorm, Layer
from tests.giving import give


def randomize(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 5), (4, 6, 2, 3, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_equals_torch(shape, affine, training):
    theirs = randomize(nn.GroupNorm(3, 6, eps=1e-2, affine=affine))
    ours = LatentNorm(Group(3, eps=1e-2), 6, affine=affine).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape) * 3 - 1
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 3, 5), (4, 6, 2, 3, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_equals_torch(shape, affine):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(shape) - 3]
    theirs = randomize(kind(6, eps=1e-2, affine=affine))
    ours = LatentNorm(Instance(eps=1e-2), 6, affine=affine)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape) * 3 - 1
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 3, 5, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_channel_last_layer_equals_torch(shape, affine):
    theirs = randomize(nn.LayerNorm(6, eps=1e-2, elementwise_affine=affine))
    ours = LatentNorm(Layer(eps=1e-2), 6, affine=affine, channel_last=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape) * 3 - 1
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 5)])
def test_channel_first_layer_is_one_group(shape):
    theirs = randomize(nn.GroupNorm(1, 6))
    ours = LatentNorm(Layer(), 6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("examples", [None, 4])
def test_channel_last_latents_act_on_the_last_axis(examples):
    ours = LatentNorm(Layer(), 6, channel_last=True)
    nn.init.uniform_(ours.weight, 0.5, 1.5)
    nn.init.normal_(ours.bias)
    x = torch.randn(4, 5, 6)
    batch = () if examples is None else (examples,)
    shift, scale = torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5
    x_hat = torch.nn.functional.layer_norm(x, (6,))
    per = (lambda v: v) if examples is None else (lambda v: v[:, None])
    expected = ours.weight * per(scale) * (x_hat + per(shift)) + ours.bias
    give(ours, (shift, scale))
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("examples", [None, 4])
def test_layer_over_channels_and_positions(affine, examples):
    shape = (6, 3, 5)
    theirs = randomize(nn.LayerNorm(shape, eps=1e-2, elementwise_affine=affine))
    ours = LatentNorm(Layer(eps=1e-2, normalized_shape=shape), 6, affine=False)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    x = torch.randn(4, *shape) * 3 - 1
    torch.testing.assert_close(ours(x), theirs(x))
    batch = () if examples is None else (examples,)
    shift, scale = torch.randn(*batch, 6), torch.rand(*batch, 6) + 0.5
    give(ours, (shift, scale))
    x_hat = torch.nn.functional.layer_norm(x, shape, eps=1e-2)
    expected = scale[..., None, None] * (x_hat + shift[..., None, None])
    if affine:
        expected = theirs.weight * expected + theirs.bias
    torch.testing.assert_close(ours(x), expected)


def test_layer_over_several_axes_refuses_other_shapes():
    ours = LatentNorm(Layer(normalized_shape=(6, 3)), 6, affine=False)
    with pytest.raises(ShapeError, match=r"shape \(batch, ..., 6, 3\), got \(4, 6, 5\)"):
        ours(torch.randn(4, 6, 5))


def test_groups_must_divide_the_channels():
    with pytest.raises(OptionError, match="num_groups=4 does not divide 6 channels"):
        LatentNorm(Group(4), 6)
    with pytest.raises(OptionError, match="num_groups must be at least 1"):
        Group(0)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_group_needs_two_values(shape):
    layer = LatentNorm(Group(6), 6)
    layer.name = "norm1"
    with pytest.raises(ShapeError, match="norm1: group statistics need at least 2 values .* got 1"):
        layer(torch.randn(shape))
    layer(torch.randn(4, 6, 2))


@pytest.mark.parametrize("normalizer", [Group(3), Layer(), Instance()])
def test_meta_device(normalizer):
    layer = LatentNorm(normalizer, 6).to("meta")
    assert layer(torch.empty(4, 6, 5, device="meta")).shape == (4, 6, 5)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_instance_needs_positions(shape):
    layer = LatentNorm(Instance(), 6)
    layer.name = "norm1"
    with pytest.raises(ShapeError, match="norm1: instance statistics need at least 2 positions"):
        layer(torch.randn(shape))


@pytest.mark.parametrize("normalizer", [Group(3), Layer(), Instance()])
def test_vmap_over_latents_equals_a_loop(normalizer):
    layer = randomize(LatentNorm(normalizer, 6))
    x, shift, scale = torch.randn(4, 6, 5), torch.randn(7, 1, 6), torch.rand(7, 1, 6) + 0.5

    def evaluate(shift, scale):
        give(layer, (shift, scale))
        return layer(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop)


@pytest.mark.parametrize("normalizer", [Group(3), Instance()])
def test_gradients_reach_everything(normalizer):
    layer = randomize(LatentNorm(normalizer, 6)).double()
    x = torch.randn(2, 6, 4, dtype=torch.double, requires_grad=True)
    shift = torch.randn(6, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(6, dtype=torch.double) + 0.5).requires_grad_()

    def evaluate(x, shift, scale):
        give(layer, (shift, scale))
        return layer(x)

    assert torch.autograd.gradcheck(evaluate, (x, shift, scale))
