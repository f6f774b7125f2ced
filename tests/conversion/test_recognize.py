"""Layers under other names, written as public packages write them: what they compute decides."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm import LatentNetwork, conversion_report, convert, estimate_population_statistics
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers import (
    RMS,
    Batch,
    Deviation,
    Group,
    Instance,
    LatentNorm,
    Layer,
    Population,
    SyncBatch,
)

C = 6


class LlamaRMSNorm(nn.Module):
    """As language models have it: computed in float32, ``variance_epsilon``."""

    def __init__(self, hidden_size, eps=1e-3):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class GemmaRMSNorm(nn.Module):
    """The weight is learned as a difference from 1."""

    def __init__(self, dim, eps=1e-3):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class LayerNorm1P(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class BareLayerNorm(nn.Module):
    """Without weight and bias, and with an eps that only the code knows."""

    def __init__(self, hidden_size):
        super().__init__()
        self.normalized_shape = (hidden_size,)

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, None, None, eps=1e-8)


class GammaNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.g, self.b = (
            nn.Parameter(torch.ones(1, dim, 1, 1)),
            nn.Parameter(torch.zeros(1, dim, 1, 1)),
        )

    def forward(self, x):
        var, mean = x.var(1, unbiased=False, keepdim=True), x.mean(1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.g + self.b


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class RmsNorm2d(nn.Module):
    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.normalized_shape, self.eps = (channels,), eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        inverse = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return x * inverse * self.weight[:, None, None]


class SimpleNorm2d(RmsNorm2d):
    def forward(self, x):
        return x * torch.rsqrt(x.var(1, keepdim=True) + self.eps) * self.weight[:, None, None]


class ConvNextLayerNorm(nn.LayerNorm):
    def __init__(self, shape, data_format="channels_last", **options):
        super().__init__(shape, **options)
        self.data_format = data_format

    def forward(self, x):
        if self.data_format == "channels_first":
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, channels, act=nn.SiLU, drop=None):
        super().__init__(channels)
        self.drop = nn.Identity() if drop is None else drop
        self.act = act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class GroupNorm1(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(1, channels)


class GroupNormAct(nn.GroupNorm):
    def __init__(self, channels, groups):
        super().__init__(groups, channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(
            self.drop(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))
        )


class FrozenBatchNormAct2d(nn.Module):
    """Buffers alone, and an activation: a layer with a child module."""

    def __init__(self, channels, eps=1e-4):
        super().__init__()
        self.eps = eps
        for key, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(key, torch.full((channels,), float(value)))
        self.act = nn.ReLU()

    def forward(self, x):
        w, b, m, v = (
            t.reshape(1, -1, 1, 1)
            for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = w * (v + self.eps).rsqrt()
        return self.act(x * scale + b - m * scale)


class FrozenBatchNorm2d(nn.Module):
    """As detection packages have it: another kernel where no gradient is asked for."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for key, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(key, torch.full((num_features,), float(value)))

    def forward(self, x):
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
            )
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class InstanceNormPlain(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_features = channels

    def forward(self, x):
        return F.instance_norm(x)


IMAGE, TOKENS = (4, C, 5, 3), (4, 5, C)
KINDS = {
    "llama": (LlamaRMSNorm(C), TOKENS, RMS(eps=1e-3)),
    "gemma": (GemmaRMSNorm(C), TOKENS, RMS(eps=1e-3)),
    "one plus": (LayerNorm1P(C, eps=1e-2), TOKENS, Layer(eps=1e-2)),
    "no weight": (BareLayerNorm(C), TOKENS, Layer(eps=1e-8)),
    "g and b": (GammaNorm(C), IMAGE, Layer(eps=1e-5, per_position=True)),
    "layer 2d": (LayerNorm2d(C), IMAGE, Layer(eps=1e-5, per_position=True)),
    "rms 2d": (RmsNorm2d(C), IMAGE, RMS(eps=1e-6, per_position=True)),
    "simple 2d": (SimpleNorm2d(C), IMAGE, Deviation(eps=1e-6, per_position=True)),
    "convnext last": (ConvNextLayerNorm(C, eps=1e-6), (4, 5, 3, C), Layer(eps=1e-6)),
    "convnext first": (
        ConvNextLayerNorm(C, "channels_first"),
        IMAGE,
        Layer(eps=1e-5, per_position=True),
    ),
    "batch act": (BatchNormAct2d(C), IMAGE, Batch(eps=1e-5)),
    "batch drop act": (BatchNormAct2d(C, nn.PReLU, nn.Dropout2d(0.4)), IMAGE, Batch(eps=1e-5)),
    "group 1": (GroupNorm1(C), IMAGE, Group(1, eps=1e-5)),
    "group act": (GroupNormAct(C, 3), IMAGE, Group(3, eps=1e-5)),
    "frozen": (FrozenBatchNorm2d(C), IMAGE, Population(eps=1e-5)),
    "frozen act": (FrozenBatchNormAct2d(C), IMAGE, Population(eps=1e-4)),
    "instance": (InstanceNormPlain(C), IMAGE, Instance(eps=1e-5)),
    "sync": (nn.SyncBatchNorm(C), IMAGE, SyncBatch(eps=1e-5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_it_computes_decides(name):
    torch.manual_seed(0)
    layer, shape, normalizer = KINDS[name]
    layer = copy.deepcopy(layer)
    for tensor in (*layer._parameters.values(), *layer._buffers.values()):
        if tensor is not None and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    if "num_batches_tracked" in layer._buffers:
        layer.num_batches_tracked.fill_(1)
    original = nn.Sequential(layer)
    network = convert(original)
    new = network[0]
    assert new.normalizer == normalizer
    assert new.original == type(layer).__name__
    assert list(network.state_dict()) == list(original.state_dict())
    named = [n for n, _ in original.named_parameters()]
    assert [n for n, _ in network.named_parameters()] == named
    x = 3 * torch.randn(shape) + 1
    for training in (False, True):
        torch.manual_seed(1)
        expected = copy.deepcopy(original).train(training)(x)
        torch.manual_seed(1)
        torch.testing.assert_close(network.train(training)(x), expected)
    # another state goes in and out under the names of the original
    network.load_state_dict(original.state_dict())
    assert conversion_report(network).converted[0].channels == C


@pytest.mark.parametrize("name", KINDS)
def test_latents_follow_the_definition(name):
    torch.manual_seed(0)
    layer, shape, _ = KINDS[name]
    network = convert(nn.Sequential(layer.eval())).eval()
    new = network[0]
    x = 3 * torch.randn(shape) + 1
    if "num_batches_tracked" in dict(new.named_buffers()):
        estimate_population_statistics(network, [x])
    last = shape == TOKENS or shape[-1] == C
    shift, scale = torch.randn(2, 4, C), torch.rand(2, 4, C) + 0.5

    def align(value):  # (*, channel) to the axes of x
        ones = (1,) * (len(shape) - 2)
        return value.view(-1, *ones, C) if last else value.view(-1, C, *ones)

    weight = getattr(new, new.weight_name, None)
    gain = align(torch.ones(C) if new.gain is None else new.gain)
    assert weight is None or new.weight_plus == 0 or torch.equal(new.gain, weight + 1)
    offset = align(torch.zeros(C) if new.offset is None else new.offset)
    then, new.then = new.then, ()
    hat = (network(x) - offset) / gain
    new.then = then
    expected = torch.stack(
        [gain * align(s) * (hat + align(t)) + offset for t, s in zip(shift, scale, strict=True)]
    )
    for part in then:
        expected = torch.stack([new.get_submodule(part)(y.clone()) for y in expected])
    found = LatentNetwork(network)(x, shift, scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class HalfRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x) / 2


class UnbiasedNorm(LlamaRMSNorm):
    """Divides by the unbiased deviation: close to a layer normalization, but none."""

    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3)


class WrongActNorm(BatchNormAct2d):
    def forward(self, x):
        return self.drop(self.act(super().forward(x)))


class FilterResponseNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x):
        inverse = x.square().mean((2, 3), keepdim=True).add(1e-5).rsqrt()
        return x * inverse * self.weight[:, None, None] + self.bias[:, None, None]


class EvoNorm2dS0(nn.Module):
    """Not a standardization: a nonlinear numerator over a deviation."""

    def __init__(self, channels, groups=2):
        super().__init__()
        self.groups = groups
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        parts = x.reshape(len(x), self.groups, -1)
        std = (
            parts.var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt().expand_as(parts).view_as(x)
        )
        w, b, v = (t[:, None, None] for t in (self.weight, self.bias, self.v))
        return x * (x * v).sigmoid() / std * w + b


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (HalfRMSNorm(C), r"\(HalfRMSNorm\) is of no known kind; of RMS.* differ by 0\.\d"),
        (UnbiasedNorm(C), r"of Layer\(.* the outputs differ by 0\.\d"),
        (WrongActNorm(C, drop=nn.Softplus()), "of no known kind"),
        (FilterResponseNorm(C), "is of no known kind; of .* differ by"),
        (EvoNorm2dS0(C), "has the tensors weight, v, bias"),
    ],
)
def test_what_is_close_is_refused_with_the_difference(layer, message):
    network = nn.Sequential(layer, nn.GroupNorm(2, C))
    with pytest.raises(ConversionError, match=f"layer '0' .*{message}"):
        convert(network)
    converted = convert(network, skip="0")
    assert type(converted[0]) is type(layer)
    assert isinstance(converted[1], LatentNorm)
    assert [row.layer for row in conversion_report(converted).unconverted] == ["0"]


class MaxNorm(nn.Module):
    """A weight constraint."""

    def forward(self, weight):
        return weight * (1 / weight.norm(dim=1, keepdim=True).clamp(min=1))


class NormLinear(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class GlobalResponseNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x):
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        ratio = norm / (norm.mean(1, keepdim=True) + 1e-6)
        return x + self.bias[:, None, None] + self.weight[:, None, None] * x * ratio


class Normalize(nn.Module):
    """Fixed numbers, as in transforms."""

    def forward(self, x):
        return (x - 0.5) / 0.2


class PreNorm(nn.Module):
    """A block that holds a normalization, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.gamma = nn.LayerNorm(C), nn.Parameter(torch.ones(C))

    def forward(self, x):
        return x + self.gamma * self.norm(x)


def constrained() -> nn.Module:
    layer = nn.Linear(C, C)
    nn.utils.parametrize.register_parametrization(layer, "weight", MaxNorm())
    return layer


@pytest.mark.parametrize(
    "other",
    [
        constrained,
        lambda: NormLinear(C, C),
        lambda: nn.LocalResponseNorm(2),
        lambda: GlobalResponseNorm(C),
        Normalize,
    ],
)
def test_what_only_has_the_name_is_left_alone(other):
    torch.manual_seed(0)
    network = convert(nn.Sequential(other(), nn.BatchNorm1d(C)))
    assert not isinstance(network[0], LatentNorm)
    assert conversion_report(network).unconverted == ()
    with pytest.raises(ConversionError, match="has no normalization layer"):
        convert(nn.Sequential(other()))


def test_a_block_that_holds_a_normalization_is_none_itself():
    network = convert(nn.Sequential(PreNorm()))
    assert isinstance(network[0], PreNorm)
    assert isinstance(network[0].norm, LatentNorm)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"skip": "1"}, ["0", "2"]),
        ({"skip": ["0", "2"]}, ["1"]),
        ({"only": ["0", "1"], "skip": "1"}, ["0"]),
        ({"skip": ()}, ["0", "1", "2"]),
    ],
)
def test_skip_leaves_layers_as_they_are(options, left):
    network = convert(nn.Sequential(*(nn.GroupNorm(2, C) for _ in range(3))), **options)
    assert [n for n, m in network.named_modules() if isinstance(m, LatentNorm)] == left


def test_skip_has_to_match_and_to_leave_something():
    network = nn.Sequential(nn.GroupNorm(2, C))
    with pytest.raises(OptionError, match="skip='norm' matches no normalization layer; .* '0'"):
        convert(network, skip="norm")
    with pytest.raises(OptionError, match="skip leaves no normalization layer"):
        convert(network, skip="*")


def test_the_statistics_and_their_count_are_those_of_each_layer():
    network = nn.Sequential(BatchNormAct2d(C), BatchNormAct2d(C))  # alike but for their numbers
    network[0](torch.randn(4, C, 2, 2))
    with pytest.raises(ConversionError, match="layer '1'.* has no population statistics"):
        convert(network, Population())
    network[1](torch.randn(4, C, 2, 2))
    assert convert(network, Population())[1].normalizer == Population(eps=1e-5)


def test_recognition_leaves_layer_and_generators_alone():
    layer = BatchNormAct2d(C, drop=nn.Dropout(0.5))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    state = torch.get_rng_state()
    convert(nn.Sequential(layer))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_statistics_of_a_group_of_processes_are_refused():
    layer = nn.SyncBatchNorm(C)
    layer.process_group = object()  # some of the processes
    with pytest.raises(ConversionError, match="within a group of processes"):
        convert(nn.Sequential(layer))


def test_what_the_network_reads_of_a_layer_stays_there():
    new = convert(nn.Sequential(LlamaRMSNorm(C), nn.BatchNorm2d(C), nn.GroupNorm(2, C)))
    assert new[0].variance_epsilon == 1e-3
    assert (new[1].num_features, new[1].momentum) == (C, 0.1)
    assert (new[2].num_groups, new[2].num_channels) == (2, C)


def test_batch_statistics_without_tracking_but_with_valid_buffers():
    layer = nn.BatchNorm1d(C)
    layer(3 * torch.randn(64, C) + 1)
    layer.track_running_stats = False  # callbacks for finetuning do that
    x = torch.randn(8, C)
    expected = layer.eval()(x)
    network = convert(nn.Sequential(layer))
    torch.testing.assert_close(network.eval()(x), expected)
    torch.testing.assert_close(convert(nn.Sequential(layer), Population())(x), expected)
    layer.running_mean = layer.running_var = None
    for normalizer in (None, Population()):
        with pytest.raises(ConversionError, match="no population statistics"):
            convert(nn.Sequential(layer), normalizer)


class TwoLayoutsNorm(nn.Module):
    """Channels last, but for images: the layer normalization of some segmentation encoders."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(C) + 0.5)
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        y = F.layer_norm(x, (C,), self.weight, self.bias, 1e-5)
        return y.permute(0, 3, 1, 2) if x.ndim == 4 else y


def test_a_layout_that_depends_on_the_number_of_axes():
    torch.manual_seed(0)
    layer = TwoLayoutsNorm()
    network = convert(nn.Sequential(layer))
    assert network[0].first_ranks == (4,)
    shift, scale = torch.randn(3, 1, C), torch.rand(3, 1, C) + 0.5
    for shape in (IMAGE, TOKENS, (4, C), (2, C, C, C)):
        x = torch.randn(shape)
        torch.testing.assert_close(network(x), layer(x))
        axes = (1, -1, 1, 1) if len(shape) == 4 else (-1,)
        w, b = layer.weight.view(axes[-3:]), layer.bias.view(axes[-3:])
        hat = (layer(x) - b) / w
        expected = [
            w * s.view(axes[-3:]) * (hat + t.view(axes[-3:])) + b
            for t, s in zip(shift, scale, strict=True)
        ]
        found = LatentNetwork(network)(x, shift, scale)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


class IrrepsBatchNorm(nn.Module):
    """In the form of e3nn's: norms of vectors have statistics, and scalars alone a mean and a bias."""

    def __init__(self, scalars=3, vectors=2):
        super().__init__()
        self.scalars, self.vectors = scalars, vectors
        self.register_buffer("running_mean", torch.zeros(scalars))
        self.register_buffer("running_var", torch.ones(scalars + vectors))
        self.weight = nn.Parameter(torch.ones(scalars + vectors))
        self.bias = nn.Parameter(torch.zeros(scalars))

    def forward(self, x):
        s, v = x[:, : self.scalars], x[:, self.scalars :].unflatten(1, (self.vectors, 3))
        scale = self.weight / (self.running_var + 1e-5).sqrt()
        s = (s - self.running_mean) * scale[: self.scalars] + self.bias
        return torch.cat([s, (v * scale[self.scalars :, None]).flatten(1)], 1)


class PairNorm(nn.Module):
    def forward(self, x):
        x = x - x.mean(0)
        return x / (1e-5 + x.square().sum(1).mean()).sqrt()


class HeteroLayerNorm(nn.Module):
    """A weight for each type of node."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, C))

    def forward(self, x, types):
        return F.layer_norm(x, (C,)) * self.weight[types]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (IrrepsBatchNorm(), r"tensors of different lengths \(weight 5, .*equivariance"),
        (PairNorm(), "has neither a weight nor a number of channels"),
        (HeteroLayerNorm(), r"its weight of shape \(4, 6\) is not per channel"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_latents_per_channel_is_refused_with_the_reason(layer, message):
    with pytest.raises(ConversionError, match=f"layer '0' .*{message}"):
        convert(nn.Sequential(layer, nn.BatchNorm1d(C)))
