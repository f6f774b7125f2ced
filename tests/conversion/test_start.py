from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyronorm.conversion import analytic_start, convert, data_dependent_start
from pyronorm.errors import ConversionError, StatisticsError
from pyronorm.normalizers import Analytic, LatentNorm, Weight
from tests.giving import give
from tests.nets import SHAPES, ResNet, conv_net, mlp

NORMALIZERS = [Weight(), Analytic()]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OPTIONS = [
    {},
    {"groups": 2, "bias": False},
    {"stride": 2},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"dilation": 2, "groups": 2},
]


def up_net(dims: int, **options) -> nn.Sequential:
    """A convolution and a transposed one, with normalizations."""
    plain = {k: v for k, v in options.items() if k in ("groups", "dilation", "bias")}
    return nn.Sequential(
        CONVS[dims - 1](2, 4, 3, padding=2, **plain),
        BATCH_NORMS[dims - 1](4),
        nn.GELU(),
        TRANSPOSED[dims - 1](4, 6, 3, **options),
        BATCH_NORMS[dims - 1](6),
    )


def layers_of(network: nn.Module) -> dict[str, LatentNorm]:
    return {n: m for n, m in network.named_modules() if isinstance(m, LatentNorm)}


def standardized(network: nn.Module, x: Tensor) -> None:
    """Each layer's output, with weight 1 and bias 0, has mean 0 and variance 1."""
    outputs: list[Tensor] = []
    for layer in layers_of(network).values():
        assert torch.equal(layer.weight, torch.ones_like(layer.weight))
        layer.register_forward_hook(lambda m, args, y: outputs.append(y.detach().clone()))
    network(x)
    assert len(outputs) == len(layers_of(network)) > 1
    for y in outputs:
        flat = y.movedim(1, 0).flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros(len(flat)), atol=2e-5, rtol=0)
        torch.testing.assert_close(
            flat.var(1, correction=0), torch.ones(len(flat)), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_data_dependent_start_standardizes_every_layer_in_turn(dims, normalizer):
    x = torch.randn(32, *SHAPES[dims]) * 3 + 1
    network = convert(conv_net(dims), normalizer, example_input=x[:2])
    data_dependent_start(network, x)
    standardized(network, x)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_data_dependent_start_of_transposed_convolutions(dims, options, normalizer):
    x = torch.randn(16, *SHAPES[dims]) * 2 - 1
    network = convert(up_net(dims, **options), normalizer, example_input=x[:2])
    data_dependent_start(network, x)
    standardized(network, x)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
def test_data_dependent_start_of_a_residual_network(normalizer):
    x = torch.randn(32, 3, 9, 8) * 2 + 1
    network = convert(ResNet(blocks=2), normalizer, example_input=x[:2])
    data_dependent_start(network, x)
    standardized(network, x)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
def test_data_dependent_start_equals_batch_norm_on_that_batch(normalizer):
    x = torch.randn(32, *SHAPES[2])
    original = conv_net(2)
    network = convert(original, normalizer, example_input=x)
    data_dependent_start(network, x)
    torch.testing.assert_close(network(x), original.train()(x), rtol=1e-3, atol=1e-4)


def test_data_dependent_start_for_a_channel_last_linear_layer():
    original = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))
    x = torch.randn(7, 4, 5)
    network = convert(original, Weight(), example_input=x)
    data_dependent_start(network, x)
    y = network(x).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(6))
    layer = network[1]
    give(layer, (torch.randn(7, 6), torch.rand(7, 6) + 0.5))
    expected = layer.latents[1][:, None] * (y.view(7, 4, 6) + layer.latents[0][:, None])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
def test_a_second_start_replaces_the_first(normalizer):
    x = torch.randn(32, *SHAPES[1])
    network = convert(conv_net(1), normalizer, example_input=x)
    data_dependent_start(network, x * 5 - 3)
    data_dependent_start(network, x)
    fresh = convert(copy.deepcopy(conv_net(1)), normalizer, example_input=x)
    fresh.load_state_dict({**network.state_dict(), **start_of(fresh)})
    data_dependent_start(fresh, x)
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def start_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if "start" in k}


@pytest.mark.parametrize("start", ["data", "analytic"])
def test_a_start_changes_start_statistics_and_nothing_else(start):
    x = torch.randn(32, *SHAPES[2])
    network = convert(conv_net(2), Weight(), example_input=x).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    hooks = [len(m._forward_pre_hooks) for m in network.modules()]
    if start == "data":
        data_dependent_start(network, x)
    else:
        analytic_start(network, x, Analytic(0.5, 2.0))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) != ("start" in key), key
    assert network.training
    assert [len(m._forward_pre_hooks) for m in network.modules()] == hooks
    assert all(p.grad is None for p in network.parameters())
    assert not any(v.requires_grad for v in start_of(network).values())


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
def test_data_dependent_start_refuses_constant_data(normalizer):
    network = convert(conv_net(2), normalizer, example_input=torch.randn(2, *SHAPES[2]))
    one = conv_net(2)[:2]  # with padding, constant images are not constant behind a convolution
    one[0].padding = 0
    one = convert(one, normalizer, example_input=torch.randn(2, *SHAPES[2]))
    hooks = [len(m._forward_pre_hooks) for m in network.modules()]
    with pytest.raises(StatisticsError, match=r"1: 4 of 4 channels are constant"):
        data_dependent_start(one, torch.zeros(8, *SHAPES[2]))
    with pytest.raises(StatisticsError, match="not finite"):
        data_dependent_start(network, torch.full((8, *SHAPES[2]), torch.nan))
    assert [len(m._forward_pre_hooks) for m in network.modules()] == hooks


def test_starts_need_layers_that_keep_a_start():
    with pytest.raises(ConversionError, match="no normalizer with start statistics"):
        data_dependent_start(nn.Linear(2, 2), torch.zeros(8, 2))
    network = convert(mlp(), Analytic(), example_input=torch.randn(3, 5))
    with pytest.raises(
        ConversionError,
        match="analytic_start: the network has no normalizer that owns a linear layer",
    ):
        analytic_start(network, torch.randn(3, 5))


def reference(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of what each layer's linear layer puts out, by Analytic."""
    return {
        name: layer.normalizer.reference(layer, torch.empty(0))
        for name, layer in layers_of(network).items()
    }


NETWORKS = {
    "mlp": (mlp, (5,)),
    "conv 1d": (lambda: conv_net(1), SHAPES[1]),
    "conv 2d": (lambda: conv_net(2), SHAPES[2]),
    "conv 3d": (lambda: conv_net(3), SHAPES[3]),
    "residual": (lambda: ResNet(blocks=2), (3, 9, 8)),
}
for _dims in (1, 2, 3):
    for _options in OPTIONS:
        NETWORKS[f"transposed {_dims}d {_options}"] = (
            lambda dims=_dims, options=_options: up_net(dims, **options),
            SHAPES[_dims],
        )


@pytest.mark.parametrize("case", NETWORKS)
def test_analytic_start_is_what_analytic_normalizes_with(case):
    make, shape = NETWORKS[case]
    original, x = make(), torch.randn(2, *shape)
    for module in original.modules():
        if isinstance(module, BATCH_NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    given = Analytic(0.5, 2.0, eps=0.0)
    analytic = convert(original, given, example_input=x)
    weight = convert(original, Weight(), example_input=x)
    analytic_start(weight, x, given)
    expected = reference(analytic)
    bias = dict(original.named_parameters())
    feeding = [
        n for n, m in original.named_modules() if isinstance(m, (nn.Linear, *CONVS, *TRANSPOSED))
    ]
    for (name, layer), source in zip(
        layers_of(weight).items(), order(original, feeding), strict=True
    ):
        mean, std = expected[name]
        norm = layer.normalizer.norm(layer.linear)
        offset = bias.get(f"{source}.bias", 0.0)
        torch.testing.assert_close(layer.start_mean * norm, mean - offset, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.start_std * norm, std, rtol=1e-4, atol=1e-6)
    # so the two are one function; but for what eps does in the norm
    torch.testing.assert_close(weight.eval()(x), analytic.eval()(x), rtol=1e-3, atol=1e-4)


def order(network: nn.Module, feeding: list[str]) -> list[str]:
    """The layers that feed normalizations, in their order."""
    names = [n for n, m in network.named_modules() if isinstance(m, BATCH_NORMS)]
    all_names = [n for n, _ in network.named_modules()]
    return [
        feeding[sum(all_names.index(f) < all_names.index(n) for f in feeding) - 1] for n in names
    ]


def test_eps_of_the_analytic_start_is_added_to_the_variance_of_the_projection():
    x = torch.randn(4, 5)
    network = convert(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), Weight(), example_input=x)
    for normalizer, eps in ((None, 1e-5), (Analytic(eps=0.0), 0.0), (Analytic(eps=0.5), 0.5)):
        analytic_start(network, x, normalizer)
        # unit weights of unit inputs have the variance 1
        torch.testing.assert_close(network[1].start_std, torch.full((6,), (1 + eps) ** 0.5))
        torch.testing.assert_close(network[1].start_mean, torch.zeros(6))


def test_analytic_start_refuses_by_name_what_it_cannot_follow():
    def refusal(network: nn.Module, x: Tensor) -> str:
        converted = convert(network, Weight(), example_input=x)
        with pytest.raises(ConversionError) as caught:
            analytic_start(converted, x)
        return str(caught.value)

    x = torch.randn(2, 4, 9)
    text = refusal(nn.Sequential(nn.Softmax(1), nn.Conv1d(4, 3, 2), nn.BatchNorm1d(3)), x)
    assert "to layer '2' through module '0' (Softmax)" in text
    up = nn.ConvTranspose1d(4, 3, 2, stride=2, dilation=2)
    text = refusal(nn.Sequential(up, nn.BatchNorm1d(3)), x)
    assert text.startswith(
        "analytic_start: cannot propagate moments through the ConvTranspose1d of"
    )
    assert "layer '1' with both a stride and a dilation" in text
    text = refusal(nn.Sequential(nn.Linear(9, 6), nn.LayerNorm(6)), x)
    assert "layer '1' has its channels on the last axis" in text


def test_analytic_start_beside_other_normalizations():
    """Of Weight layers only; others are where moments begin anew, converted or not."""
    x = torch.randn(3, 5)
    network = convert(convert(mlp(), only=["1"]), Weight(), only=["4"], example_input=x)
    nn.init.uniform_(network[1].weight, 1, 2)
    analytic_start(network, x)
    rest = mlp()[1:5]
    with torch.no_grad():
        rest[0].weight.copy_(network[1].weight)
        rest[2].weight.copy_(network[4].linear.weight)
        rest[2].bias.zero_()
    layer = convert(rest, Analytic(), only=["4"], example_input=torch.randn(3, 6))[3]
    mean, std = layer.normalizer.reference(layer, torch.empty(0))
    norm = network[4].normalizer.norm(network[4].linear)
    torch.testing.assert_close(network[4].start_mean * norm, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network[4].start_std * norm, std, rtol=1e-3, atol=0)
