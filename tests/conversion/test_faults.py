"""What went wrong once in conversions of real networks, with the right values."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pyronorm import (
    LatentNetwork,
    NormalizationModel,
    conversion_report,
    convert,
    fit,
    guides,
    likelihoods,
    predict,
    trust_statistics,
)
from pyronorm.errors import ConversionError, OptionError, StatisticsError
from pyronorm.normalizers import (
    RMS,
    Analytic,
    Batch,
    BatchWhitening,
    Ghost,
    Group,
    GroupWhitening,
    Instance,
    LatentNorm,
    Layer,
    Population,
    Weight,
)


class TwoPlaces(nn.Module):
    """Layers that are registered under their own names and in a sequence, as in nnU-Net."""

    def __init__(self, block_first: bool) -> None:
        super().__init__()
        conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if not block_first:
            self.conv, self.norm = conv, norm
        self.block = nn.Sequential(conv, norm, nn.ReLU())
        if block_first:
            self.conv, self.norm = conv, norm

    def forward(self, x):
        return self.block(x)


@pytest.mark.parametrize("block_first", [False, True])
@pytest.mark.parametrize("only", [None, "norm", "block.1"])
@pytest.mark.parametrize("normalizer", [Weight(), Analytic(), Population()], ids=str)
def test_modules_at_two_places(block_first, only, normalizer):
    torch.manual_seed(0)
    original, x = TwoPlaces(block_first), torch.randn(4, 3, 6, 6)
    original(x)
    original.eval()
    network = convert(original, normalizer, only=only, example_input=x)
    assert network.norm is network.block[1]
    assert isinstance(network.norm, LatentNorm)
    torch.testing.assert_close(network(x), original(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "normalizer",
    [None, Group(2), Layer(), RMS(), Batch(), Ghost(2), Instance(), GroupWhitening(2)],
    ids=str,
)
def test_outputs_are_contiguous_where_those_of_the_original_were(normalizer):
    x = torch.randn(4, 5, 6)
    network = convert(nn.LayerNorm(6), normalizer).train()
    assert network(x).is_contiguous()
    shift, scale = torch.randn(4, 6), torch.rand(4, 6) + 0.5
    assert LatentNetwork(network)(x, shift, scale).is_contiguous()


class ReadsStride(nn.Module):
    """Pads by what it reads of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        pad = self.conv.stride[0]
        return self.norm(self.conv(nn.functional.pad(x, (pad, pad, pad, pad))))


def test_a_network_that_reads_of_a_layer_that_was_taken_in():
    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(ConversionError, match="ReadsStride does not run without .* 'stride'"):
        convert(ReadsStride(), Weight(), example_input=x)
    assert convert(ReadsStride(), Analytic(), example_input=x)(x).shape == (4, 4, 6, 6)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
@pytest.mark.parametrize("normalizer", [None, Group(2), Layer(), RMS(), Instance()], ids=str)
def test_empty_batches(layer, normalizer):
    x = torch.empty(0, 4, 3, 3)
    network = convert(layer, normalizer).eval()
    trust_statistics(network)
    assert network(x).shape == x.shape


@pytest.mark.parametrize("normalizer", [BatchWhitening(2), GroupWhitening(2)], ids=str)
def test_empty_batches_of_whitening(normalizer):
    x = torch.empty(0, 4, 3, 3)
    network = convert(nn.BatchNorm2d(4), normalizer).eval()
    trust_statistics(network)
    assert network(x).shape == x.shape


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("network", [None, "resnet18", nn.BatchNorm1d, [nn.BatchNorm1d(3)]])
def test_what_is_no_network(network):
    with pytest.raises(OptionError, match=r"convert: network must be a Module, got"):
        convert(network)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-5])
def test_an_eps_that_is_no_number(eps):
    with pytest.raises(OptionError, match="Batch: eps must be finite and not negative"):
        Batch(eps=eps)


def trained_net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 3)
    network(x)
    return network.eval(), x


def test_names_of_a_compiled_network():  # tests/latents/test_network.py runs one
    original, _ = trained_net()
    network = convert(torch.compile(original, backend="eager"))
    (layer,) = (m for m in network.modules() if isinstance(m, LatentNorm))
    assert layer.name == "1"
    assert LatentNetwork(network).space.names == ("1",)
    assert conversion_report(network).converted[0].layer == "1"
    compiled = LatentNetwork(torch.compile(convert(original), backend="eager"))
    assert compiled.space == LatentNetwork(convert(original)).space
    part = nn.Sequential(torch.compile(original, backend="eager"), nn.LayerNorm(2))
    assert LatentNetwork(convert(part)).space.names == ("0.1", "1")
    assert LatentNetwork(convert(part, only="0.1")).space.names == ("0.1",)
    assert LatentNetwork(convert(part, skip="0._orig_mod.1")).space.names == ("1",)


def test_gradients_over_weights_in_evaluation_mode():
    original, x = trained_net()
    network = convert(original)
    latent, neutral = LatentNetwork(network), (torch.zeros(8), torch.ones(8))

    def loss(module, *latents):
        def of(weights):
            return torch.func.functional_call(module, weights, (x, *latents)).square().sum()

        return of, dict(module.named_parameters())

    function, weights = loss(original)
    expected = torch.func.grad(function)(weights)
    for module, latents in ((network, ()), (latent, neutral)):
        function, weights = loss(module, *latents)
        found = torch.func.grad(function)(weights)
        found = {name.removeprefix("network."): g for name, g in found.items()}
        torch.testing.assert_close(found, expected)
    each = torch.func.vmap(torch.func.grad(lambda w, row: loss_of(network, w, row)), (None, 0))
    weights = dict(network.named_parameters())
    torch.testing.assert_close({k: g.sum(0) for k, g in each(weights, x).items()}, expected)
    several = [convert(original) for _ in range(3)]
    stacked = torch.func.stack_module_state(several)
    together = torch.func.vmap(lambda *s: torch.func.functional_call(network, s, (x,)))(*stacked)
    torch.testing.assert_close(together, original(x).expand(3, -1, -1))


def loss_of(network, weights, row):
    return torch.func.functional_call(network, weights, (row[None],)).square().sum()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("normalizer", [None, Analytic(), Population()], ids=str)
@pytest.mark.parametrize(
    "constrain",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_constraints_of_weights_old_and_new(constrain, normalizer):
    original, x = trained_net()
    constrain(original[0])
    original.train()(x).sum().backward()
    original.eval()
    network = convert(original, normalizer, example_input=x)
    torch.testing.assert_close(network(x), original(x), rtol=1e-5, atol=1e-5)
    if normalizer is None:
        assert list(network.state_dict()) == list(original.state_dict())
    shift, scale = torch.randn(5, 1, 8), torch.rand(5, 1, 8) + 0.5
    latent = LatentNetwork(network)
    loop = torch.stack([latent(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(latent(x, shift, scale), loop, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_takes_in_new_constraints_but_no_hooks():
    original, x = trained_net()
    nn.utils.parametrizations.weight_norm(original[0])
    network = convert(original, Weight(), example_input=x)
    torch.testing.assert_close(network(x), original(x), rtol=1e-5, atol=1e-5)
    original, x = trained_net()
    nn.utils.weight_norm(original[0])
    with pytest.raises(ConversionError, match="'0', which has hooks that would no longer run"):
        convert(original, Weight(), example_input=x)


class CutShort(nn.Module):
    """An encoder whose last blocks never run, as in PSPNet; and a head for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.never = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.auxiliary = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.head = nn.Linear(8, 2)
        self.to_the_end = False

    def forward(self, x):
        y = self.first(x)
        if self.to_the_end:
            y = self.never(y)
        return self.head(y) + (self.auxiliary(y) if self.training else 0)


def test_layers_that_never_run():
    torch.manual_seed(0)
    original, x = CutShort(), torch.randn(32, 3)
    for _ in range(3):
        original(x)
    network = convert(original.eval())
    torch.testing.assert_close(network(x), original(x))
    latent = LatentNetwork(network)
    mean, _ = latent.reference_statistics()
    first, never, auxiliary = mean.split((8, 8, 8))
    assert torch.equal(first, original.first[1].running_mean)
    assert never.isnan().all()
    assert auxiliary.isfinite().all()  # it ran in training
    again = convert(CutShort()).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(x), original(x))
    network.to_the_end = True
    with pytest.raises(StatisticsError, match=r"never\.1: it has no population statistics"):
        network(x)
    network.to_the_end = False
    model = NormalizationModel(network, likelihoods.Categorical(), num_data=32)
    guide = guides.MeanField(model)
    with pytest.warns(UserWarning, match=r"never ran never\.1"):
        fit(model, guide, (x, torch.arange(32) % 2), epochs=1, progress=False)
    assert predict(model, guide, x, num_samples=3).mean.isfinite().all()


def test_a_network_without_any_statistics_has_no_unused_layers():
    with pytest.raises(StatisticsError, match=r"first\.1 has no population statistics"):
        convert(CutShort()).eval()(torch.randn(4, 3))


class Attention(nn.Module):
    """As in GPT-2: views of what a normalization with channels last returns."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 3)

    def forward(self, x):
        batch, steps, width = x.shape
        rows = self.qkv(self.before(x).view(-1, width))
        q, k, v = rows.view(batch, steps, 3 * width).split(width, 2)
        y = x + (q @ k.mT).softmax(-1) @ v
        return self.head(self.after(y).view(batch * steps, width)).view(batch, steps, 3).mean(1)


@pytest.mark.parametrize(
    "normalizer",
    [None, Group(2), RMS(), Batch(), Ghost(2), Instance(), GroupWhitening(2), BatchWhitening(2)],
    ids=str,
)
def test_an_attention_network_that_takes_views(normalizer):
    torch.manual_seed(0)
    original, x = Attention(), torch.randn(8, 5, 8)
    network = convert(original, normalizer)
    if normalizer is None:
        torch.testing.assert_close(network(x), original(x))
    model = NormalizationModel(network, likelihoods.Categorical(), num_data=8)
    guide = guides.MeanField(model)
    history = fit(model, guide, (x, torch.arange(8) % 3), epochs=1, batch_size=4, progress=False)
    assert torch.tensor(history.losses).isfinite().all()
    shift, scale = torch.randn(5, 1, 16), torch.rand(5, 1, 16) + 0.5
    with torch.no_grad():
        loop = [model.network(x, *pair) for pair in zip(shift, scale, strict=True)]
        together = model.network(x, shift, scale)
    torch.testing.assert_close(together, torch.stack(loop), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_prediction_by_a_recurrent_network(cell):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell = nn.LayerNorm(4), cell(4, 2, batch_first=True)

        def forward(self, x):
            return self.cell(self.norm(x))[0][:, -1]

    torch.manual_seed(0)
    x, y = torch.randn(32, 5, 4), torch.arange(32) % 2
    model = NormalizationModel(convert(Recurrent()), likelihoods.Categorical(), num_data=32)
    guide = guides.MeanField(model)
    fit(model, guide, (x, y), epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict(model, guide, x, 8).mean.shape == (32, 2)
