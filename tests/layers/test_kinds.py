from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork, convert, estimate_population_statistics
from pyronorm.errors import ConversionError
from pyronorm.layers import Batch, Ghost, Group, LatentNorm, Population, Weight
from tests.nets import conv_net


class FrozenBatchNorm2d(nn.Module):
    """What torchvision.ops.misc has: everything a buffer, no count of batches."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.view(shape) * (self.running_var.view(shape) + self.eps).rsqrt()
        return x * scale + self.bias.view(shape) - self.running_mean.view(shape) * scale


Elsewhere = type("FrozenBatchNorm2d", (FrozenBatchNorm2d,), {"__module__": "detectron2.layers.bn"})
Empty = type("FrozenBatchNorm2d", (nn.Module,), {"__module__": "torchvision.ops.misc"})
FrozenBatchNorm2d.__module__ = "torchvision.ops.misc"


def frozen_net() -> nn.Sequential:
    def norm(channels: int) -> nn.Module:
        layer = FrozenBatchNorm2d(channels, eps=1e-3)
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        return layer

    return conv_net(2, norm)


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


class Subclass(nn.BatchNorm1d):
    pass


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))


def parametrized(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus(), unsafe=True)
    return layer


def changed(change) -> nn.Module:
    layer = nn.BatchNorm1d(5)
    change(layer)
    return layer


def with_state_hook(layer: nn.Module) -> None:
    layer.register_state_dict_post_hook(lambda *args: None)


def with_own_forward(layer: nn.Module) -> None:
    layer.forward = types.MethodType(lambda self, x: x, layer)


REFUSED = {
    "sync": (nn.SyncBatchNorm(5), r"\(SyncBatchNorm\) shares statistics"),
    "no population": (nn.BatchNorm1d(5, track_running_stats=False), "track_running_stats=False"),
    "two kinds": (nn.InstanceNorm1d(5, track_running_stats=True), "track_running_stats=True"),
    "subclass": (Subclass(5), r"\(Subclass\) is not one of .* BatchNorm1d, .* of torchvision"),
    "own": (OwnRMSNorm(), r"\(OwnRMSNorm\) is not one of"),
    "torch's own": (nn.LocalResponseNorm(2), r"\(LocalResponseNorm\) is not one of"),
    "frozen elsewhere": (Elsewhere(5), r"\(FrozenBatchNorm2d\) is of detectron2\.layers\.bn, and"),
    "frozen, empty": (Empty(), r"\(FrozenBatchNorm2d\) is of torchvision\.ops\.misc, and only"),
    "lone channel": (nn.LayerNorm(1), "normalizes over a single value"),
    "lone channel, RMS": (nn.RMSNorm((1, 1)), "normalizes over a single value"),
    "RMS over axes": (nn.RMSNorm((5, 6)), r"\(RMSNorm\) normalizes over the axes \(5, 6\); only"),
    "converted": (convert(nn.BatchNorm1d(5)), "is converted already"),
    "parametrized": (
        parametrized(nn.BatchNorm1d(5)),
        r"\(ParametrizedBatchNorm1d\) is parametrized.*remove_parametrizations\(layer, 'weight'\)",
    ),
    "parametrized RMS": (parametrized(nn.RMSNorm(5)), r"\(ParametrizedRMSNorm\) is parametrized"),
    "parametrized own": (parametrized(OwnRMSNorm()), r"\(ParametrizedOwnRMSNorm\) is parametrized"),
    "own forward": (changed(with_own_forward), "has had its forward replaced"),
    "extra": (changed(lambda m: m.register_buffer("old", torch.ones(5))), "holds 'old', which a "),
    "children": (changed(lambda m: m.add_module("act", nn.ReLU())), "holds 'act', which a BatchN"),
    "state hooks": (changed(with_state_hook), "has hooks on its state dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(case):
    layer, message = REFUSED[case]
    network = nn.Sequential(layer, nn.BatchNorm1d(5))
    with pytest.raises(ConversionError, match=f"layer '0' .*{message}"):
        convert(network)
    converted = convert(network, only="1")  # leaving it out is the way round
    assert isinstance(converted[1], LatentNorm)
    assert type(converted[0]).__name__ == type(layer).__name__


def test_the_network_itself_is_named_too():
    with pytest.raises(ConversionError, match=r"layer '\(the network itself\)' \(Subclass\)"):
        convert(Subclass(5))


def test_the_fix_for_a_parametrized_layer_works():
    layer = parametrized(nn.BatchNorm1d(5))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(convert(layer), LatentNorm)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("inner", [nn.BatchNorm1d(5), nn.Sequential(nn.BatchNorm1d(5))])
@pytest.mark.parametrize("compiler", ["script", "trace"])
def test_compiled_layers_are_not_skipped(inner, compiler):
    inner = inner.eval()
    compiled = (
        torch.jit.script(inner)
        if compiler == "script"
        else torch.jit.trace(inner, torch.randn(3, 5))
    )
    network = nn.Sequential(compiled, nn.BatchNorm1d(5))
    with pytest.raises(
        ConversionError, match=r"\(BatchNorm1d\) is compiled by torch\.jit; convert"
    ):
        convert(network)
    assert isinstance(convert(network, only="1")[1], LatentNorm)


def test_parametrizations_are_not_normalization_layers():
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(ConversionError, match="Sequential has no normalization layer"):
        convert(network)
