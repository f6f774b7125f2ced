from __future__ import annotations

import pytest
import torch
import torch.ao.nn.intrinsic as fused
import torch.ao.nn.intrinsic.qat as fused_for_training
import torch.ao.nn.intrinsic.quantized as fused_quantized
import torch.ao.nn.quantized as quantized
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig

from pyronorm import convert
from pyronorm.errors import ConversionError
from pyronorm.normalizers import LatentNorm


@pytest.mark.parametrize(
    "layer",
    [quantized.BatchNorm2d(4), quantized.BatchNorm3d(4), fused_quantized.BNReLU2d(4)],
    ids=lambda layer: type(layer).__name__,
)
def test_quantized_layers_are_refused_by_name(layer):
    network = nn.Sequential(layer, nn.BatchNorm2d(4))
    with pytest.raises(
        ConversionError,
        match=rf"layer '0' \({type(layer).__name__}\) is quantized, .* skip=\['0'\]",
    ):
        convert(network)
    assert isinstance(convert(network, skip="0")[1], LatentNorm)


def test_layers_fused_for_training_with_quantization_are_refused_by_name():
    conv = fused_for_training.ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig())
    with pytest.raises(
        ConversionError, match=r"'0\.bn' is held by '0' \(ConvBn2d\), which is fused"
    ):
        convert(nn.Sequential(conv))


def test_fused_layers_that_compute_what_they_hold_are_converted():
    original = nn.Sequential(
        fused.ConvBn2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        fused.BNReLU2d(nn.BatchNorm2d(4), nn.ReLU()),
    )
    x = torch.randn(5, 3, 6, 6)
    original(x)
    network = convert(original.eval())
    assert isinstance(network[0][1], LatentNorm)
    assert isinstance(network[1][0], LatentNorm)
    assert torch.equal(network(x), original(x))


class SingleElement(nn.Module):
    """As torch_geometric's BatchNorm: it computes with the layer's own tensors for a single node."""

    def __init__(self, allow_single_element: bool) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(4)
        self.allow_single_element = allow_single_element

    def forward(self, x):
        if self.allow_single_element and len(x) <= 1:
            m = self.module
            return nn.functional.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)
        return self.module(x)


def test_a_holder_that_goes_around_its_layer_is_refused():
    assert isinstance(convert(SingleElement(False)).module, LatentNorm)
    with pytest.raises(
        ConversionError, match=r"'module' is held by '' \(SingleElement\), .* for a single node"
    ):
        convert(SingleElement(True))
