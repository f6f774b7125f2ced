from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyronorm import (
    NormalizationModel,
    collect_bank,
    convert,
    estimate_population_statistics,
    guides,
    likelihoods,
)
from pyronorm.errors import ConversionError, DataError, OptionError, ShapeError
from pyronorm.normalizers import Batch, Ghost, LatentNorm
from tests.giving import give
from tests.nets import conv_net, mlp, train_briefly
from tests.normalizers.test_batch import SHAPES, pair


def on_parts(layer: nn.Module, x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([layer(part) for part in x.split(size)])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 3, 4, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_torch_on_each_part(shape, affine, size, dtype):
    # 8 examples: into 4 parts, 3 + 3 + 2, halves, one part, and less than one part
    theirs, ours = pair(shape, Ghost(size, eps=1e-3), affine)
    theirs, ours = theirs.to(dtype).train(), ours.to(dtype).train()
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    expected = on_parts(theirs, x, size)
    assert torch.equal(ours(x), expected)
    if size < 8:  # and not the statistics of the whole batch
        assert (ours(x) - theirs(x)).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_takes_the_population(shape):
    theirs, ours = pair(shape, Ghost(3, eps=1e-3))
    x = torch.randn(shape) * 2 + 1
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("examples", [None, 1, 8])
def test_latents_follow_the_definition(examples, training):
    theirs, ours = pair((8, 3, 5), Ghost(3, eps=1e-3))
    theirs.train(training)
    ours.train(training)
    x = torch.randn(8, 3, 5) * 2 + 1
    y = on_parts(theirs, x, 3) if training else theirs(x)
    x_hat = (y - theirs.bias[:, None]) / theirs.weight[:, None]
    batch = () if examples is None else (examples,)
    shift, scale = torch.randn(*batch, 3), torch.rand(*batch, 3) + 0.5
    give(ours, (shift, scale))
    expected = theirs.weight[:, None] * scale[..., None] * (x_hat + shift[..., None])
    expected = expected + theirs.bias[:, None]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_everything():
    _, layer = pair((5, 3, 4), Ghost(2))
    layer = layer.double()
    x = torch.randn(5, 3, 4, dtype=torch.double, requires_grad=True)
    shift = torch.randn(3, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(3, dtype=torch.double) + 0.5).requires_grad_()

    def evaluate(x, shift, scale, weight, bias):
        give(layer, (shift, scale))
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(evaluate, (x, shift, scale, layer.weight, layer.bias))


@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_latents_equals_a_loop(training):
    _, layer = pair((8, 3, 5), Ghost(3))
    layer.train(training)
    x, shift, scale = torch.randn(8, 3, 5), torch.randn(4, 1, 3), torch.rand(4, 1, 3) + 0.5

    def evaluate(shift, scale):
        give(layer, (shift, scale))
        return layer(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop)


def test_autocast_memory_format_and_purity():
    _, layer = pair((8, 3, 4, 5), Ghost(3))
    give(layer, (torch.randn(3), torch.rand(3) + 0.5))
    before = copy.deepcopy(layer.state_dict())
    x = (torch.randn(8, 3, 4, 5) + 8).bfloat16().to(memory_format=torch.channels_last)
    exact = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert ((y.float() - exact).abs() / exact.abs().clamp(min=1)).max() < 2**-6
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_channel_last_is_channel_first_moved():
    _, first = pair((8, 3, 5), Ghost(3))
    last = LatentNorm(Ghost(3), 3, channel_last=True)
    last.load_state_dict(first.state_dict())
    x = torch.randn(8, 3, 5)
    torch.testing.assert_close(last(x.movedim(1, -1)), first(x).movedim(1, -1))


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 1), 3), ((6, 3), 1)])
def test_virtual_batches_of_one_value_are_refused_by_name(shape, size):
    layer = LatentNorm(Ghost(size), 3)
    layer.name = "bn7"
    message = f"bn7: a virtual batch has 1 example.*virtual_batch_size={size}"
    with pytest.raises(ShapeError, match=message):
        layer(torch.randn(shape))
    layer.eval()(torch.randn(shape))


def test_a_rest_of_one_value_joins_the_virtual_batch_before_it():
    theirs, ours = pair((7, 3), Ghost(3, eps=1e-3))
    x = torch.randn(7, 3)
    theirs.train()
    expected = torch.cat([theirs(part) for part in (x[:3], x[3:])])
    torch.testing.assert_close(ours(x), expected)


def test_a_rest_of_one_example_with_positions_is_its_own_virtual_batch():
    theirs, ours = pair((7, 3, 5), Ghost(3, eps=1e-3))
    x = torch.randn(7, 3, 5)
    assert torch.equal(ours(x), on_parts(theirs.train(), x, 3))


def test_no_virtual_batch_is_refused():
    with pytest.raises(
        OptionError, match="virtual_batch_size must be at least 1, an integer, got 0"
    ):
        Ghost(0)


def test_conversion_from_batch_carries_the_population():
    original = train_briefly(mlp(), (5,), steps=3).eval()
    network = convert(original, Ghost(4))
    assert network[1].normalizer == Ghost(4, eps=original[1].eps)
    assert list(network.state_dict()) == list(original.state_dict())
    x = torch.randn(6, 5)
    torch.testing.assert_close(network(x), original(x))
    original.train()
    expected = torch.cat([original(part) for part in x.split(4)])
    torch.testing.assert_close(network.train()(x), expected)


@pytest.mark.parametrize("batch_size", [23, 10, 4])
def test_population_statistics_pool_exactly(batch_size):
    # batches of 23 are cut into 4 * 5 + 3, batches of 10 into 4 + 4 + 2
    network = convert(conv_net(1), Ghost(4))
    x = torch.randn(23, 2, 7) * 2 + 1
    estimate_population_statistics(network, x, batch_size=batch_size)
    first = network[0](x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(network[1].running_mean, first.mean(1))
    torch.testing.assert_close(network[1].running_var, first.var(1, correction=0))
    # the second layer sees inputs that torch normalizes virtual batch by virtual batch
    reference = conv_net(1)
    reference.load_state_dict(network.state_dict())
    hidden = []
    reference[3].register_forward_hook(lambda m, args, y: hidden.append(y))
    for batch in x.split(batch_size):
        for part in batch.split(4):
            reference.train()(part)
    second = torch.cat(hidden).movedim(1, 0).flatten(1)
    torch.testing.assert_close(network[4].running_mean, second.mean(1))
    torch.testing.assert_close(network[4].running_var, second.var(1, correction=0))
    assert network[4].num_batches_tracked == -(-23 // batch_size)


def test_a_row_of_a_bank_is_one_virtual_batch():
    original = train_briefly(conv_net(1), (2, 7), steps=3)
    batches = list(torch.randn(12, 2, 7).split(4))
    ghost = collect_bank(convert(original, Ghost(4)), batches)
    batch = collect_bank(convert(original, Batch()), batches)
    assert ghost.batch_size == 4
    assert torch.equal(ghost.shift, batch.shift)
    assert torch.equal(ghost.scale, batch.scale)


def test_a_bank_of_other_batches_is_refused():
    network = convert(train_briefly(conv_net(1), (2, 7), steps=3), Ghost(4))
    x = torch.randn(12, 2, 7)
    for size in (3, 8, 256):
        with pytest.raises(DataError, match=r"in 1 has 4 examples.*has \d+.*batch_size=4"):
            collect_bank(network, x, batch_size=size)
    loader = DataLoader(TensorDataset(x), batch_size=5)
    with pytest.raises(DataError, match="in 1 has 4 examples, but a batch of the data has 5"):
        collect_bank(network, loader)


class Frames(nn.Module):
    """Normalizes frames, several of which belong to one example."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_layer_that_sees_several_virtual_batches_at_once_has_no_bank():
    network = convert(train_briefly(Frames(), (2, 5), steps=1), Ghost(4))
    with pytest.raises(ConversionError, match="norm runs more than once .* several virtual"):
        collect_bank(network, torch.randn(8, 2, 5), batch_size=4)


def test_several_draws_are_refused():
    network = convert(mlp(), Ghost(4))
    model = NormalizationModel(network, likelihoods.Categorical(), 20, draws=2)
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    with pytest.raises(OptionError, match=r"draws=2, but 1 takes statistics over the batch"):
        model(x, y)
    guide = guides.MeanField(model.eval())
    estimate_population_statistics(model, x)
    guide(x, y)
    model(x, y)  # in evaluation mode there is one draw
