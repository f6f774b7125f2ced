from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyronorm.conversion import convert
from pyronorm.errors import ConversionError
from pyronorm.normalizers import Analytic, Batch, Group, LatentNorm, Layer, Weight
from pyronorm.propagation.propagate import build_propagation, propagate
from pyronorm.propagation.tracing import trace
from pyronorm.stats import propagation as moments
from tests.nets import SHAPES, ResNet, conv_net, mlp

LIKE = torch.empty(0)
X = torch.randn(2, 4, 5, 6)


class Net(nn.Module):
    """Layers that a test wires as it wants, before the normalization ``norm``."""

    def __init__(self, wire, channels: int = 4, first=nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = first(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3)
        self.one = nn.Conv2d(4, 1, 1)
        self.squeeze = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm2d(channels)
        self.wire = wire
        for layer in (self.first, self.norm):
            if isinstance(getattr(layer, "weight", None), Tensor):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)

    def forward(self, x):
        return self.norm(self.wire(self, x))


def converted(wire, x=X, normalizer=None, **options) -> nn.Module:
    normalizer = Analytic() if normalizer is None else normalizer
    return convert(Net(wire, **options), normalizer, only=["norm"], example_input=x)


def refusal(wire, x=X, normalizer=None, **options) -> str:
    with pytest.raises(ConversionError) as caught:
        converted(wire, x, normalizer, **options)
    return str(caught.value)


def of_first(n: Net) -> moments.Gaussian:
    return n.first.bias, n.first.weight.square()


def conv(layer: nn.Conv2d, x: moments.Gaussian) -> moments.Gaussian:
    return moments.convolution_moments(x, layer.weight, layer.bias)


STANDARD = (torch.zeros(4), torch.ones(4))
relu = moments.leaky_relu_moments


def gated(n: Net, x: Tensor) -> Tensor:
    h = n.first(x)
    gate = torch.sigmoid(n.squeeze(h.mean((2, 3))))
    return h * gate[:, :, None, None]


def gated_moments(n: Net) -> moments.Gaussian:
    h = of_first(n)
    pooled = moments.linear_moments((h[0], h[1] / 30), n.squeeze.weight, n.squeeze.bias)
    return moments.product_moments(h, moments.elementwise_moments(pooled, torch.sigmoid))


CASES = {
    "from the input": (lambda n, x: n.conv(x), lambda n: conv(n.conv, STANDARD)),
    "nothing between": (lambda n, x: x, lambda n: STANDARD),
    "nothing but a normalization": (lambda n, x: n.first(x), of_first),
    "from a normalization": (
        lambda n, x: n.conv(n.act(n.first(x))),
        lambda n: conv(n.conv, relu(of_first(n))),
    ),
    "two convolutions": (
        lambda n, x: n.again(n.act(n.conv(n.first(x)))),
        lambda n: conv(n.again, relu(conv(n.conv, of_first(n)))),
    ),
    "what comes before a normalization does not matter": (
        lambda n, x: n.conv(n.first(x.softmax(1).cumsum(2))),
        lambda n: conv(n.conv, of_first(n)),
    ),
    "a residual sum": (
        lambda n, x: n.conv(n.act(h := n.first(x))) + h,
        lambda n: moments_sum(conv(n.conv, relu(of_first(n))), of_first(n)),
    ),
    "a residual sum in place": (
        lambda n, x: n.conv(n.act(h := n.first(x))).add_(h),
        lambda n: moments_sum(conv(n.conv, relu(of_first(n))), of_first(n)),
    ),
    "a difference": (
        lambda n, x: n.first(x) - n.conv(x),
        lambda n: moments_sum(of_first(n), conv(n.conv, STANDARD), -1),
    ),
    "a weighted sum": (
        lambda n, x: torch.add(n.first(x), n.conv(x), alpha=-0.3),
        lambda n: moments_sum(of_first(n), conv(n.conv, STANDARD), -0.3),
    ),
    "a reflected difference": (
        lambda n, x: torch.rsub(n.first(x), n.conv(x), alpha=2),
        lambda n: moments_sum(conv(n.conv, STANDARD), of_first(n), -2),
    ),
    "a product": (
        lambda n, x: n.first(x) * n.conv(x),
        lambda n: moments.product_moments(of_first(n), conv(n.conv, STANDARD)),
    ),
    "one channel with many": (
        lambda n, x: n.one(x) * n.first(x),
        lambda n: moments.product_moments(of_first(n), conv(n.one, STANDARD)),
    ),
    "many channels with one": (
        lambda n, x: n.first(x) + n.one(x),
        lambda n: moments_sum(of_first(n), conv(n.one, STANDARD)),
    ),
    "squeeze and excitation": (gated, gated_moments),
    "a rectifier before a max pooling is done after it": (
        lambda n, x: F.max_pool2d(n.act(n.conv(x)), 2),
        lambda n: relu(moments.maximum_moments(conv(n.conv, STANDARD), 4)),
    ),
    "so are other functions that never decrease": (
        lambda n, x: F.adaptive_max_pool2d(F.leaky_relu(n.first(x), 0.2).clamp(max=1), 1),
        lambda n: clipped_below_one(
            moments.maximum_moments(moments.leaky_relu_moments(of_first(n), 0.2), 30)
        ),
    ),
    "but no others": (
        lambda n, x: F.max_pool2d(F.leaky_relu(n.first(x), -0.2), (5, 3)),
        lambda n: moments.maximum_moments(moments.leaky_relu_moments(of_first(n), -0.2), 15),
    ),
}


def clipped_below_one(x):
    below, var = relu((1 - x[0], x[1]))
    return 1 - below, var


def moments_sum(x, y, alpha=1.0):
    return x[0] + alpha * y[0], x[1] + alpha**2 * y[1]


@pytest.mark.parametrize("case", CASES)
def test_moments_of_paths(case):
    wire, expected = CASES[case]
    network = converted(wire)
    torch.testing.assert_close(network.norm.surroundings(LIKE), expected(network))


def test_branches_of_a_concatenation():
    network = converted(
        lambda n, x: torch.cat([n.first(x), n.act(n.one(x)), n.conv(x)], 1), channels=9
    )
    parts = (
        of_first(network),
        relu(conv(network.one, STANDARD)),
        conv(network.conv, STANDARD),
    )
    expected = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(network.norm.surroundings(LIKE), expected)


FIRST = {
    "GroupNorm": lambda c: nn.GroupNorm(2, c),
    "GroupNorm without affine map": lambda c: nn.GroupNorm(2, c, affine=False),
    "InstanceNorm2d": nn.InstanceNorm2d,
    "InstanceNorm2d with affine map": lambda c: nn.InstanceNorm2d(c, affine=True),
    "BatchNorm2d without affine map": lambda c: nn.BatchNorm2d(c, affine=False),
    "BatchNorm2d without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "SyncBatchNorm": nn.SyncBatchNorm,
    "LayerNorm without affine map": lambda c: nn.LayerNorm((c, 5, 6), elementwise_affine=False),
    "Batch": lambda c: LatentNorm(Batch(), c),
    "Group": lambda c: LatentNorm(Group(2), c),
    "Layer without affine map": lambda c: LatentNorm(Layer(), c, affine=False),
    "Weight": lambda c: LatentNorm(Weight(), c, parts={"linear": nn.Conv2d(4, c, 1)}),
}


@pytest.mark.parametrize("kind", FIRST)
def test_every_kind_of_normalization_before(kind):
    network = converted(lambda n, x: n.conv(n.first(x)), first=FIRST[kind])
    first = network.first
    weight = getattr(first, "weight", None)
    before = (torch.zeros(4), torch.ones(4)) if weight is None else of_first(network)
    torch.testing.assert_close(network.norm.surroundings(LIKE), conv(network.conv, before))
    assert weight is None or not torch.equal(first.weight, torch.ones(4))


NORMS_REFUSED = {
    "weight per position": (lambda c: nn.LayerNorm((c, 5, 6)), "with a weight per position"),
    "channels last": (lambda c: nn.LayerNorm(6), "channels on the last axis of (2, 4, 5, 6)"),
    "latent layer, channels last": (
        lambda c: LatentNorm(Layer(), 6, channel_last=True),
        "channels on the last axis",
    ),
}


@pytest.mark.parametrize("kind", NORMS_REFUSED)
def test_normalizations_before_that_are_refused(kind):
    make, message = NORMS_REFUSED[kind]
    text = refusal(lambda n, x: n.conv(n.first(x)), first=make)
    assert "layer 'norm' through module 'first' (L" in text
    assert message in text


def test_a_channel_last_layer_before_with_as_many_positions_as_channels():
    """(batch, 4, 4): the weight of the last axis must not be taken for that of axis 1."""
    network = nn.Sequential(nn.LayerNorm(4), nn.Conv1d(4, 3, 1), nn.BatchNorm1d(3))
    with pytest.raises(ConversionError, match=r"'0' \(LayerNorm\) with channels on the last axis"):
        convert(network, Analytic(), only=["2"], example_input=torch.randn(2, 4, 4))


def test_layer_norm_on_two_axes_is_channel_first_and_last():
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6))
    network.append(nn.LayerNorm(6))
    nn.init.normal_(network[1].bias)
    network = convert(network, Analytic(), example_input=torch.randn(3, 5))
    x = (network[1].bias, network[1].weight.square())
    expected = moments.linear_moments(relu(x), network[3].weight, network[3].bias)
    torch.testing.assert_close(network[4].surroundings(LIKE), expected)


def test_input_statistics():
    mean, std = (0.3, -1.0, 2.0, 0.0), (0.5, 1.0, 2.0, 0.1)
    network = converted(lambda n, x: n.conv(x), normalizer=Analytic(mean, std))
    given = (torch.tensor(mean), torch.tensor(std).square())
    torch.testing.assert_close(network.norm.surroundings(LIKE), conv(network.conv, given))
    network = converted(lambda n, x: n.conv(x), normalizer=Analytic(2.0, std))
    given = (torch.full((4,), 2.0), torch.tensor(std).square())
    torch.testing.assert_close(network.norm.surroundings(LIKE), conv(network.conv, given))
    text = refusal(lambda n, x: x, normalizer=Analytic((0.0, 1.0)))
    assert text.startswith("convert: input statistics for 2 channels, but the example input has 4")


def test_integer_images_that_are_cast():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network

        def forward(self, x):
            return self.body(x.float() / 255)

    x = torch.randint(256, (2, 3, 5, 6), dtype=torch.uint8)
    new = convert(Cast(), Analytic(127.5, 51.0), example_input=x)
    expected = conv(network[0], (torch.full((3,), 0.5), torch.full((3,), 0.04)))
    torch.testing.assert_close(new.body[1].surroundings(LIKE), expected)


def test_moments_follow_the_weights_and_modes_of_the_new_network():
    wire = lambda n, x: n.conv(F.dropout(n.first(x), 0.4, n.training)) * n.gain  # noqa: E731
    network = converted(wire)

    def expected(active):
        x = of_first(network)
        x = moments.dropout_moments(x, 0.4) if active else x
        mean, var = conv(network.conv, x)
        gain = network.gain.flatten()
        return mean * gain, var * gain.square()

    torch.testing.assert_close(network.norm.surroundings(LIKE), expected(True))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(network.norm.surroundings(LIKE), expected(True))
    torch.testing.assert_close(network.eval().norm.surroundings(LIKE), expected(False))


def test_gradients_reach_all_weights_on_the_way_and_no_others():
    network = converted(lambda n, x: n.again(n.act(n.conv(n.first(n.one(x) + x)))))
    mean, var = network.norm.surroundings(LIKE)
    (mean.sum() + var.sum()).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    layers = ("first", "conv", "again")
    assert reached == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_is_float32_at_least(dtype):
    network = converted(lambda n, x: n.conv(n.act(n.first(x))))
    exact = network.double().norm.surroundings(LIKE.double())
    network.to(dtype)
    mean, var = network.norm.surroundings(LIKE.to(dtype))
    expected = torch.promote_types(dtype, torch.float32)
    assert mean.dtype == var.dtype == expected
    tolerance = 1e-12 if dtype == torch.float64 else 0.02  # of the rounded weights
    torch.testing.assert_close((mean.double(), var.double()), exact, rtol=tolerance, atol=tolerance)


def test_autocast_is_off():
    network = converted(lambda n, x: n.conv(n.first(x)))
    expected = network.norm.surroundings(LIKE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(network.norm.surroundings(LIKE), expected, rtol=0, atol=0)


def analytic_layers(network: nn.Module) -> list[LatentNorm]:
    return [m for m in network.modules() if isinstance(m, LatentNorm)]


def test_several_layers_together_share_their_steps():
    network = convert(ResNet(blocks=2), Analytic(), example_input=torch.randn(2, 3, 9, 8))
    layers = analytic_layers(network)
    alone = [layer.surroundings(LIKE) for layer in layers]
    together = propagate([layer.surroundings for layer in layers], LIKE)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)
    backwards = propagate([layer.surroundings for layer in layers[::-1]], LIKE)
    torch.testing.assert_close(backwards[::-1], together, rtol=0, atol=0)
    assert propagate([], LIKE) == []


def test_layers_of_different_networks_together():
    networks = [
        convert(conv_net(d), Analytic(), example_input=torch.randn(2, *SHAPES[d])) for d in (1, 2)
    ]
    layers = [layer for network in networks for layer in analytic_layers(network)]
    together = propagate([layer.surroundings for layer in layers], LIKE)
    for layer, found in zip(layers, together, strict=True):
        torch.testing.assert_close(found, layer.surroundings(LIKE), rtol=0, atol=0)


def test_converted_in_two_goes():
    """The layers before are latent layers already, of another kind or of the same."""
    x = torch.randn(3, 5)
    once = convert(mlp(), Analytic(), only=["1"], example_input=x)
    twice = convert(once, Analytic(0.5, 2.0), only=["4"], example_input=x)
    for layer in (twice[1], twice[4]):
        assert isinstance(layer.normalizer, Analytic)
    h = (twice[1].bias, twice[1].weight.square())
    expected = moments.linear_moments(
        moments.elementwise_moments(h, torch.tanh), twice[3].weight, twice[3].bias
    )
    torch.testing.assert_close(twice[4].surroundings(LIKE), expected)
    # the first layer's propagation went along with the copy
    with torch.no_grad():
        twice[0].weight.mul_(3)
    expected = moments.linear_moments(
        (torch.zeros(5), torch.ones(5)), twice[0].weight, twice[0].bias
    )
    torch.testing.assert_close(twice[1].surroundings(LIKE), expected)
    together = propagate([twice[1].surroundings, twice[4].surroundings], LIKE)
    torch.testing.assert_close(together[0], expected)


def test_copies_and_pickles_follow_their_own_weights():
    network = converted(lambda n, x: n.conv(n.act(n.first(x))))
    network.wire = None  # a lambda cannot be pickled
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            twin.conv.weight.mul_(2)
        expected = conv(twin.conv, relu(of_first(twin)))
        torch.testing.assert_close(twin.norm.surroundings(LIKE), expected)
        assert not torch.equal(twin.norm.surroundings(LIKE)[1], network.norm.surroundings(LIKE)[1])


class Everything(nn.Module):
    """Every kind of function call, to be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        x = F.max_pool2d(F.gelu(x), 2)
        x = F.adaptive_max_pool2d(1 - x.relu_() * 2, 3)[..., :2]
        x = F.pad(F.interpolate(x.clamp_(min=0) / 3, scale_factor=2), (1, 1))
        return self.norm(torch.cat([x * self.gain, F.dropout(x, 0.1, self.training)], 1))


def test_networks_of_functions_are_pickled():
    network = convert(Everything(), Analytic(), example_input=torch.randn(2, 4, 9, 8))
    twin = pickle.loads(pickle.dumps(network))
    torch.testing.assert_close(twin.norm.surroundings(LIKE), network.norm.surroundings(LIKE))


TARGETS_REFUSED = {
    "called twice": (
        lambda n, x: n.norm(n.conv(x)),
        "layer 'norm' is called 2 times on the example input, not once",
    ),
    "of a parameter": (
        lambda n, x: n.gain.expand(2, 4, 3, 3),
        "cannot propagate moments to layer 'norm' through operation 'expand'",
    ),
    "of nothing known": (
        lambda n, x: torch.ones(2, 4, 3, 3),
        "cannot propagate moments to layer 'norm' through operation 'ones'",
    ),
    "of a stored tensor": (
        lambda n, x: X,
        "layer 'norm' does not take a tensor that can be followed from the network's input",
    ),
    "a parameter itself": (
        lambda n, x: n.gain,
        "layer 'norm' does not take a tensor that can be followed from the network's input",
    ),
    "called in a branch on the data": (
        lambda n, x: n.conv(x) if bool(x.mean() > -99) else x,
        "layer 'norm' through operation '__bool__', which makes numbers of a tensor",
    ),
}


@pytest.mark.parametrize("case", TARGETS_REFUSED)
def test_layers_that_have_no_single_moments_are_refused(case):
    wire, message = TARGETS_REFUSED[case]
    text = refusal(wire)
    assert message in text
    assert text.endswith("with only=[...], or choose another normalizer for it.")


def test_a_layer_that_is_not_called_is_refused():
    net = Net(lambda n, x: n.conv(x))
    net.unused = nn.BatchNorm2d(4)
    with pytest.raises(ConversionError, match="layer 'unused' is called 0 times"):
        convert(net, Analytic(), only=["norm", "unused"], example_input=X)


def test_a_channel_last_layer_is_refused():
    network = nn.Sequential(nn.LayerNorm(6))
    with pytest.raises(
        ConversionError,
        match=r"layer '0' has its channels on the last axis of an input \(2, 6, 6\)",
    ):
        convert(network, Analytic(), example_input=torch.randn(2, 6, 6))


def test_an_input_without_channels_is_refused():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x.view(-1, 3))

    with pytest.raises(ConversionError, match=r"the example input has the shape \(6,\)"):
        convert(Features(), Analytic(), example_input=torch.randn(6))


def test_a_transformer_is_refused_by_name():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(ConversionError, match="layer 'norm1'"):
        convert(layer, Analytic(), example_input=torch.randn(2, 5, 4))


def test_reads_after_the_layer_do_not_matter():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.norm(x)
            return y if bool(y.isfinite().all()) else x

    network = convert(Late(), Analytic(), example_input=X)
    torch.testing.assert_close(network.norm.surroundings(LIKE), STANDARD)


def test_the_network_itself_may_be_the_layer():
    layer = convert(nn.BatchNorm2d(4), Analytic(0.5, 2.0), example_input=X)
    mean, var = layer.surroundings(LIKE)
    torch.testing.assert_close((mean, var), (torch.full((4,), 0.5), torch.full((4,), 4.0)))


def test_a_layer_registered_twice_has_one_propagation():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.b(x * 2)

    network = convert(Twice(), Analytic(), example_input=X)
    assert network.a is network.b
    torch.testing.assert_close(network.a.surroundings(LIKE)[1], torch.full((4,), 4.0))


def test_the_example_input_does_not_matter():
    """Neither its values, nor its number of examples, nor the mode of the network."""
    torch.manual_seed(0)
    original = ResNet()
    examples = torch.randn(2, 3, 9, 8), torch.zeros(1, 3, 9, 8), torch.full((5, 3, 9, 8), 7.0)
    found = [
        analytic_layers(convert(original.train(len(x) > 1), Analytic(), example_input=x))
        for x in examples
    ]
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            torch.testing.assert_close(a.surroundings(LIKE), b.surroundings(LIKE))


def test_build_propagation_in_a_network_with_other_modules_at_the_same_places():
    original = conv_net(2).double()
    calls = trace(original, torch.randn(2, *SHAPES[2]).double())
    built = build_propagation(calls, "4", original, (0.0,), (1.0,))
    x = (original[1].bias, original[1].weight.square())
    expected = conv(original[3], relu(x))
    torch.testing.assert_close(built(LIKE.double()), expected)
    assert [step.call.describe() for step in built.steps] == [
        "module '1'",
        "module '2'",
        "module '3'",
    ]
