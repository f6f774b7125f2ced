from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork, convert
from pyronorm.normalizers import LatentNorm


def encoder(norm_first: bool = False, nested: bool = False, **options) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.1, batch_first=True, norm_first=norm_first, **options
    )
    network = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=nested)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.eval()


def calls_of_latent_layers(network: nn.Module) -> list[str]:
    """Collect the names of latent layers as they run, without hooks: torch's fast path minds them."""
    seen: list[str] = []
    for layer in network.modules():
        if isinstance(layer, LatentNorm):
            forward = layer.forward
            layer.forward = lambda x, f=forward, n=layer.name: (seen.append(n), f(x))[1]
    return seen


@pytest.fixture(params=[False, True], ids=["post-norm", "pre-norm"])
def original(request):
    return encoder(request.param)


def test_torch_itself_goes_around_its_layers(original):
    """What there is to guard against; if this fails, torch has changed and the guard may go."""
    calls = []
    for layer in original.layers:
        layer.norm1.forward = lambda x: calls.append(x)
    with torch.no_grad():
        original(torch.randn(3, 5, 8))
    assert not calls


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_latents_are_never_bypassed(original, context, frozen):
    network = LatentNetwork(convert(original.requires_grad_(not frozen)))
    channels = network.space.num_channels
    x, shift, scale = torch.randn(3, 5, 8), torch.randn(channels), torch.rand(channels) + 0.5
    with torch.enable_grad():
        neutral, expected = original(x.requires_grad_()), network(x, shift, scale)
    x = x.detach()
    seen = calls_of_latent_layers(network)
    with context():
        torch.testing.assert_close(network(x), neutral, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network(x, shift, scale), expected, rtol=1e-5, atol=1e-5)
    assert seen == 2 * [
        "layers.0.norm1",
        "layers.0.norm2",
        "layers.1.norm1",
        "layers.1.norm2",
        "norm",
    ]


@pytest.mark.parametrize("twin", ["deepcopy", "pickle"])
def test_the_guard_is_copied(original, twin, tmp_path):
    network = convert(original)
    if twin == "pickle":
        torch.save(network, tmp_path / "network.pt")
        network = torch.load(tmp_path / "network.pt", weights_only=False)
    else:
        network = copy.deepcopy(network)
    seen = calls_of_latent_layers(network)
    with torch.no_grad():
        network(torch.randn(3, 5, 8))
    assert len(seen) == 5


nested_tensors = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@nested_tensors
def test_padded_sequences_without_nested_tensors():
    original = encoder(nested=True)
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    network = convert(original)
    assert original.use_nested_tensor
    assert not network.use_nested_tensor
    seen = calls_of_latent_layers(network)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            y, expected = (n(x, src_key_padding_mask=padding) for n in (network, original))
        torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
    assert len(seen) == 10


@nested_tensors
def test_layers_that_are_left_as_they_are_keep_their_fast_path():
    original = encoder(nested=True)
    network = convert(original, only="layers.1.*")
    assert network.layers[0].activation_relu_or_gelu == 1
    assert network.layers[1].activation_relu_or_gelu == 0
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad():
        y, expected = (n(x, src_key_padding_mask=padding) for n in (network, original))
    torch.testing.assert_close(y[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
    assert original.layers[1].activation_relu_or_gelu == 1  # the original is untouched


def test_gelu_is_computed_as_gelu():
    original = encoder(activation="gelu")
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(convert(original)(x), original(x))


class Translator(nn.Module):
    """Encoder and decoder, in evaluation mode on one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.transformer(x, x)


def test_encoder_and_decoder():
    original = Translator().eval()
    network = LatentNetwork(convert(original)).eval()
    assert len(network.layers) == 7
    x, channels = torch.randn(3, 5, 8), network.space.num_channels
    seen = calls_of_latent_layers(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x), original(x), rtol=1e-5, atol=1e-5)
        network(x, torch.randn(channels), torch.rand(channels) + 0.5)
    assert sorted(seen) == sorted(2 * [layer.name for layer in network.layers])
