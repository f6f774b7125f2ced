from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from pyronorm import convert
from pyronorm.errors import ConversionError
from pyronorm.normalizers import LatentNorm
from tests.nets import FrozenBatchNorm2d

Elsewhere = type(
    "FrozenBatchNorm2d",
    (FrozenBatchNorm2d,),
    {"forward": lambda self, x: FrozenBatchNorm2d.forward(self, x).tanh()},
)
Empty = type("FrozenBatchNorm2d", (nn.Module,), {"__module__": "torchvision.ops.misc"})


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
    "no population": (nn.BatchNorm1d(5, track_running_stats=False), "track_running_stats=False"),
    "two kinds": (nn.InstanceNorm1d(5, track_running_stats=True), "track_running_stats=True"),
    "own": (OwnRMSNorm(), r"\(OwnRMSNorm\) is not of a registered class, and runs on no random"),
    "frozen, empty": (Empty(), r"\(FrozenBatchNorm2d\) is not of a registered class, and has nei"),
    "differs": (Elsewhere(5), r"\(FrozenBatchNorm2d\) is of no known kind; of Popul.* differ by"),
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
    with pytest.raises(ConversionError, match=r"layer '\(the network itself\)' \(OwnRMSNorm\)"):
        convert(OwnRMSNorm())


def test_the_fix_for_a_parametrized_layer_works():
    layer = parametrized(nn.BatchNorm1d(5))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(convert(layer), LatentNorm)


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
