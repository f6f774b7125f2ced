from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.errors import ShapeError
from pyronorm.normalizers import Batch, LatentNorm, Population
from tests.giving import give

SHAPES = [(8, 3), (8, 3, 5), (8, 3, 4, 5), (8, 3, 2, 4, 5)]
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def pair(shape, normalizer, affine=True, eps=1e-3):
    """torch's layer and ours with the same parameters and buffers."""
    theirs = TORCH[len(shape)](3, eps=eps, affine=affine)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.uniform_(theirs.weight, 0.5, 1.5)
        nn.init.normal_(theirs.bias)
    ours = LatentNorm(normalizer, 3, affine=affine)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_torch_in_both_modes(shape, affine, dtype):
    theirs, ours = pair(shape, Batch(eps=1e-3), affine)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.train()(x), theirs.train()(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_population_equals_torch_in_evaluation_mode(shape, training):
    theirs, ours = pair(shape, Population(eps=1e-3))
    x = torch.randn(shape) * 2 + 1
    torch.testing.assert_close(ours.train(training)(x), theirs.eval()(x))


@pytest.mark.parametrize("normalizer", [Batch(eps=1e-3), Population(eps=1e-3)])
def test_running_writes_no_buffer(normalizer):
    _, ours = pair((8, 3, 5), normalizer)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for training in (True, False):
        ours.train(training)(torch.randn(8, 3, 5))
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_moments_are_mean_and_biased_variance(shape):
    _, ours = pair(shape, Batch(eps=1e-3))
    seen = []
    ours.recorder = lambda layer, moments: seen.append((layer, moments))
    x = torch.randn(shape) * torch.tensor([1.0, 2, 3]).view(3, *(1,) * (len(shape) - 2)) + 5
    with torch.no_grad():
        y = ours(x)
    (layer, moments), flat = seen[0], x.double().movedim(1, 0).flatten(1)
    assert layer is ours
    assert moments.count == flat.shape[1]
    torch.testing.assert_close(moments.mean, flat.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.var, flat.var(1, correction=0), rtol=1e-6, atol=0)
    ours.recorder = None
    torch.testing.assert_close(ours(x), y)


def test_recording_leaves_the_gradient_alone():
    _, ours = pair((8, 3, 5), Batch())
    x = torch.randn(8, 3, 5, requires_grad=True)
    weights = torch.randn(8, 3, 5)
    (plain,) = torch.autograd.grad((ours(x) * weights).sum(), x)
    ours.recorder = lambda layer, moments: None
    (recorded,) = torch.autograd.grad((ours(x) * weights).sum(), x)
    torch.testing.assert_close(recorded, plain)


def test_recorded_moments_of_bfloat16_are_not_rounded_to_it():
    ours = LatentNorm(Batch(), 3)
    seen = []
    ours.recorder = lambda layer, moments: seen.append(moments)
    x = (torch.randn(8, 3, 50) + 10).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours(x)
    flat = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(seen[0].mean, flat.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(seen[0].var, flat.var(1, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_a_batch_of_one_is_refused_by_name(shape):
    layer = LatentNorm(Batch(), 3)
    layer.name = "bn7"
    with pytest.raises(ShapeError, match="bn7: batch statistics need at least 2 values .* got 1"):
        layer(torch.randn(shape))
    layer.eval()(torch.randn(shape))  # population statistics do not mind


def test_one_image_has_many_values():
    theirs, ours = pair((1, 3, 4, 5), Batch(eps=1e-3))
    x = torch.randn(1, 3, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("normalizer", [Batch(), Population()])
def test_vmap_over_latents_equals_a_loop(normalizer):
    _, ours = pair((8, 3, 5), normalizer)
    x, shift, scale = torch.randn(8, 3, 5), torch.randn(4, 1, 3), torch.rand(4, 1, 3) + 0.5

    def evaluate(shift, scale):
        give(ours, (shift, scale))
        return ours(x)

    for training in (True, False):
        ours.train(training)
        together = torch.func.vmap(evaluate)(shift, scale)
        loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
        torch.testing.assert_close(together, loop)
