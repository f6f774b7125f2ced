from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork, convert, estimate_population_statistics
from pyronorm.errors import ShapeError
from pyronorm.normalizers import RMS, Batch, Ghost, Group, LatentNorm, Population, Weight
from tests.giving import give
from tests.nets import SHAPES, conv_net, frozen_net


@pytest.mark.parametrize("given", [None, Population()])
def test_frozen_batch_norm_is_a_population_with_a_fixed_affine_map(given):
    original = frozen_net()
    network = convert(original, given)
    assert network[1].normalizer == Population(eps=1e-3)
    assert network[1].original == "FrozenBatchNorm2d"
    x = torch.randn(4, 2, 5, 6)
    for training in (True, False):
        torch.testing.assert_close(
            network.train(training)(x), original.train(training)(x), rtol=1e-6, atol=1e-6
        )
    # the same keys in the same order, loadable both ways, and nothing of it is trained
    assert list(network.state_dict()) == list(original.state_dict())
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in original.named_parameters()]
    other = frozen_net()
    network.load_state_dict(other.state_dict())
    torch.testing.assert_close(network(x), other(x), rtol=1e-6, atol=1e-6)
    original.load_state_dict(network.state_dict())
    assert not torch.equal(original[1].weight, frozen_net()[1].weight)


@pytest.mark.parametrize("twin", ["itself", "deepcopy", "pickle"])
def test_frozen_batch_norm_takes_the_state_dict_of_a_batch_norm(twin, tmp_path):
    network = convert(frozen_net())
    if twin == "deepcopy":
        network = copy.deepcopy(network)
    elif twin == "pickle":
        torch.save(network, tmp_path / "network.pt")
        network = torch.load(tmp_path / "network.pt", weights_only=False)
    trained = conv_net(2)
    x = torch.randn(4, 2, 5, 6)
    for _ in range(3):
        trained(x)
    state = trained.eval().state_dict()
    assert "1.num_batches_tracked" in state
    network.load_state_dict(state)  # strict
    assert "1.num_batches_tracked" in state
    for layer in (network[1], network[4]):
        assert torch.equal(layer.running_mean, state[f"{layer.name}.running_mean"])


def test_latents_of_a_frozen_batch_norm_follow_the_definition():
    layer = frozen_net()[1]
    network = LatentNetwork(convert(layer))
    x, shift, scale = torch.randn(3, 4, 5, 6), torch.randn(4), torch.rand(4) + 0.5
    w, b, m, v, t, s = (
        p[:, None, None]
        for p in (layer.weight, layer.bias, layer.running_mean, layer.running_var, shift, scale)
    )
    expected = w * s * ((x - m) / (v + 1e-3).sqrt() + t) + b
    torch.testing.assert_close(network(x, shift, scale), expected)


@pytest.mark.parametrize("normalizer", [Batch(), Ghost(2), Weight(), Group(2)], ids=str)
def test_frozen_batch_norm_into_another_kind(normalizer):
    original = frozen_net().eval()
    x = torch.randn(4, 2, 5, 6)
    network = convert(original, normalizer, example_input=x)
    assert network[1].weight is network[1]._buffers["weight"]
    assert network[1].original == "FrozenBatchNorm2d"
    if not isinstance(normalizer, Group):  # population statistics are carried
        LatentNetwork(network).check_statistics()
        torch.testing.assert_close(network.eval()(x), original(x), rtol=1e-4, atol=1e-5)
    if isinstance(normalizer, (Batch, Ghost)):
        estimate_population_statistics(network, x)
        assert network[1].num_batches_tracked == 1
        network.load_state_dict(network.state_dict())  # which holds the count of batches


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.LayerNorm(6, bias=False), (4, 5, 6)), (nn.LayerNorm((6, 5), bias=False), (4, 6, 5))],
    ids=["last axis", "several axes"],
)
def test_a_weight_without_bias_takes_latents(layer, shape):
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    new = convert(layer)
    assert new.bias is None
    x, shift, scale = torch.randn(shape), torch.randn(6), torch.rand(6) + 0.5
    if len(layer.normalized_shape) > 1:
        shift, scale = shift[:, None], scale[:, None]
    x_hat = nn.functional.layer_norm(x, layer.normalized_shape)
    give(new, (shift.flatten(), scale.flatten()))
    torch.testing.assert_close(new(x), layer.weight * scale * (x_hat + shift))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.GroupNorm, nn.InstanceNorm1d])
@pytest.mark.parametrize("normalizer", [None, Group(2), RMS(), Population(), Ghost(2)], ids=str)
def test_a_missing_bias_stays_missing(kind, normalizer):
    layer = kind(2, 6, affine=True) if kind is nn.GroupNorm else kind(6, affine=True)
    layer.register_parameter("bias", None)  # newer versions of torch have bias=False
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    x = torch.randn(4, 6, 5)
    layer.train()(x)
    if isinstance(normalizer, Population) and kind is not nn.BatchNorm1d:
        return
    new = convert(layer, normalizer)
    assert [n for n, _ in new.named_parameters()] == ["weight"]
    if normalizer is None:
        assert list(new.state_dict()) == list(layer.state_dict())
        torch.testing.assert_close(new(x), layer(x))
    x_hat = new(x) / layer.weight[:, None]
    shift, scale = torch.randn(6, 1), torch.rand(6, 1) + 0.5
    give(new, (shift[:, 0], scale[:, 0]))
    torch.testing.assert_close(new(x), layer.weight[:, None] * scale * (x_hat + shift))


def test_hooks_are_kept():
    """Each kind of hook, with and without its options, on the copy and not on the original."""
    original = conv_net(2)
    seen: list[tuple[str, type]] = []

    def note(name):
        def hook(module, *args):
            seen.append((name, type(module)))
            if name == "forward, kwargs":
                assert args[1] == {}

        return hook

    norm = original[1]
    norm.register_forward_pre_hook(note("before"))
    norm.register_forward_pre_hook(lambda m, args, kwargs: note("before, kwargs")(m), with_kwargs=1)
    norm.register_forward_hook(note("forward"))
    norm.register_forward_hook(note("forward, kwargs"), with_kwargs=True)
    norm.register_forward_hook(note("always"), always_call=True)
    norm.register_full_backward_pre_hook(note("backward before"))
    norm.register_full_backward_hook(note("backward"))
    network = convert(original)
    x = torch.randn(3, *SHAPES[2], requires_grad=True)
    network(x).sum().backward()
    names = ["before", "before, kwargs", "forward", "forward, kwargs", "always"]
    assert seen == [(name, LatentNorm) for name in [*names, "backward before", "backward"]]
    seen.clear()
    with pytest.raises(ShapeError):
        network[1](torch.randn(3, 5, 2, 2))
    assert [name for name, _ in seen] == ["before", "before, kwargs", "always"]
    seen.clear()
    original(x)
    assert [kind for _, kind in seen] == [nn.BatchNorm2d] * 5


def test_a_hook_that_changes_the_output_still_does():
    original = conv_net(2)
    original[1].register_forward_hook(lambda m, args, y: 2 * y)
    x = torch.randn(3, *SHAPES[2])
    torch.testing.assert_close(convert(original)(x), original(x))
