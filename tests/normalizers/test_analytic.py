from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn

from pyronorm import LatentNetwork, NormalizationModel, data_dependent_start, guides
from pyronorm.conversion import convert
from pyronorm.errors import ConversionError, OptionError, ShapeError, StatisticsError
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import Analytic, LatentNorm
from pyronorm.propagation.propagate import Propagation, build_propagation
from pyronorm.propagation.tracing import trace
from pyronorm.stats import propagation as moments
from tests.giving import give
from tests.nets import SHAPES, ResNet, conv_net, mlp, train_briefly

LIKE = torch.empty(0)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


# --- propagated moments against Monte Carlo -------------------------------------------------------


def started(*layers: nn.Module) -> nn.Sequential:
    """Weights of variance 2 / fan-in and biases that are not 0, with a ReLU behind each layer."""
    parts: list[nn.Module] = []
    for layer in layers:
        parts.append(layer)
        if isinstance(layer, (nn.Linear, *CONVS)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, std=0.3)
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)


class Add(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Concatenate(Add):
    """The input beside the output."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def smooth(x: Tensor) -> Tensor:
    """Blurred, of variance 1 still."""
    taps = torch.tensor([0.3, 0.8, 1.0, 0.8, 0.3])
    taps = (taps[:, None] * taps).view(1, 1, 5, 5) / taps.square().sum()
    return F.conv2d(x.flatten(0, 1)[:, None], taps).view(*x.shape[:2], x.shape[2] - 4, -1)


@torch.no_grad()
def errors(
    network: nn.Module, names: list[str], x: Tensor, normalizer: Analytic | None = None
) -> list[tuple[float, float, float]]:
    """Per layer, over channels: rms error of the mean in stds; mean and rms of var / var - 1."""
    given = (normalizer or Analytic()).input_statistics
    calls = trace(network, x[:2])
    found = [build_propagation(calls, name, network, *given)(LIKE) for name in names]
    inputs: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda m, args: inputs.append(args[0].movedim(1, 0).flatten(1).double())
        )
        for name in names
    ]
    network(x)
    for handle in handles:
        handle.remove()
    result = []
    for (mean, var), data in zip(found, inputs, strict=True):
        shift = (mean - data.mean(1)) / data.std(1)
        ratio = var / data.var(1) - 1
        result.append(
            tuple(float(v) for v in (shift.square().mean() ** 0.5, ratio.mean(), ratio.std()))
        )
    return result


def relus(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]


# For each case the network, the input, and bounds for the layers in turn: rms error of the mean in
# standard deviations, size of the mean error of the variance, spread of that error over channels.
# Bounds are at least 1.5 times the largest of 12 seeds. The first layer is exact, but for the noise of
# the data (and zero padding, in the concatenation).
CHAINS = {
    "MLP": (
        lambda: started(nn.Linear(32, 128), nn.Linear(128, 128), nn.Linear(128, 128)),
        lambda: torch.randn(20_000, 32),
        [(0.02, 0.01, 0.02), (0.02, 0.09, 0.3), (0.09, 0.09, 0.3)],
    ),
    "1d": (
        lambda: started(*(nn.Conv1d(a, 48, 3) for a in (8, 48, 48))),
        lambda: torch.randn(1500, 8, 24),
        [(0.02, 0.01, 0.02), (0.02, 0.14, 0.28), (0.1, 0.1, 0.28)],
    ),
    "2d": (
        lambda: started(*(nn.Conv2d(a, 48, 3) for a in (8, 48, 48))),
        lambda: torch.randn(400, 8, 12, 11),
        [(0.01, 0.01, 0.015), (0.02, 0.05, 0.17), (0.05, 0.05, 0.14)],
    ),
    "3d": (
        lambda: started(*(nn.Conv3d(a, 24, 2) for a in (8, 24, 24))),
        lambda: torch.randn(300, 8, 6, 7, 5),
        [(0.01, 0.01, 0.015), (0.02, 0.06, 0.16), (0.05, 0.09, 0.15)],
    ),
    "average pooling": (
        lambda: started(nn.Conv2d(8, 48, 3), nn.AvgPool2d(2), nn.Conv2d(48, 48, 3)),
        lambda: torch.randn(400, 8, 14, 12),
        [(0.01, 0.01, 0.015), (0.03, 0.07, 0.15)],
    ),
    "max pooling": (
        lambda: started(nn.Conv2d(8, 48, 3), nn.MaxPool2d(2), nn.Conv2d(48, 48, 3)),
        lambda: torch.randn(400, 8, 14, 12),
        [(0.01, 0.01, 0.015), (0.07, 0.09, 0.1)],
    ),
    "concatenation": (
        lambda: started(
            Concatenate(started(nn.Conv2d(8, 32, 3, padding=1))[:1]),
            nn.ReLU(),
            nn.Conv2d(40, 32, 3),
        ),
        lambda: torch.randn(200, 8, 24, 22),
        [(0.01, 0.1, 0.05), (0.03, 0.12, 0.2)],
    ),
    "residual sum": (
        lambda: started(
            nn.Conv2d(8, 32, 3), Add(started(nn.Conv2d(32, 32, 3, padding=1))), nn.Conv2d(32, 32, 3)
        ),
        lambda: torch.randn(200, 8, 24, 22),
        [(0.01, 0.01, 0.015), (0.1, 0.1, 0.17), (0.06, 0.07, 0.17)],
    ),
}


@pytest.mark.parametrize("case", CHAINS)
def test_moments_of_networks_without_normalization(case):
    make, draw, bounds = CHAINS[case]
    network = make()
    found = errors(network, relus(network), draw())
    assert len(found) == len(bounds)
    for number, (layer, limits) in enumerate(zip(found, bounds, strict=True)):
        for value, limit in zip(layer, limits, strict=True):
            assert abs(value) < limit, (number, layer)
    # independence is an approximation, and this test can see that it is
    assert found[-1][2] > 0.01


def test_smooth_inputs_are_not_independent():
    """Averages over correlated positions vary more than independent ones would."""
    network = started(nn.Conv2d(8, 48, 3), nn.AvgPool2d(2), nn.Conv2d(48, 48, 3))
    x = torch.randn(400, 8, 18, 16)
    white, blurred = (errors(network, relus(network), data) for data in (x[..., 4:, 4:], smooth(x)))
    assert abs(white[1][1]) < 0.1
    assert blurred[1][1] < -0.5  # the variance is underestimated
    assert blurred[0][2] > 10 * white[0][2]


def test_zero_padding_is_not_seen():
    sizes, bias = (6, 24), []
    for size in sizes:
        network = started(nn.Conv2d(8, 128, 3, padding=1))
        ((_, ratio, _),) = errors(network, relus(network), torch.randn(400, 8, size, size))
        bias.append(ratio)
    inside = [((3 * n - 2) / (3 * n)) ** 2 for n in sizes]  # the part of the taps on the image
    assert bias == pytest.approx([1 / part - 1 for part in inside], abs=0.04)


def test_a_normalized_residual_network():
    """Measured over 5 seeds: up to 0.2 standard deviations, and -7 % to 19 % of the variance."""
    network = convert(ResNet(16), Analytic(), example_input=torch.randn(2, 3, 24, 24)).eval()
    names = [n for n, m in network.named_modules() if isinstance(m, LatentNorm)]
    found = errors_of_statistics(network, names, torch.randn(150, 3, 24, 24))
    assert len(found) == 9
    assert abs(found[0][0]) < 0.02
    assert all(mean < 0.3 for mean, _ in found)
    assert all(abs(ratio) < 0.3 for _, ratio in found)


@torch.no_grad()
def errors_of_statistics(network, names, x) -> list[tuple[float, float]]:
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(n).register_forward_hook(
            lambda m, args, y: outputs.append(y.movedim(1, 0).flatten(1).double())
        )
        for n in names
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return [  # x_hat, with weight 1 and bias 0
        (float(y.mean(1).square().mean().sqrt()), float((1 / y.var(1)).mean() - 1)) for y in outputs
    ]


def test_statistics_of_the_data_make_the_first_layer_exact():
    torch.manual_seed(1)
    x = torch.randn(400, 2, 9, 8) * torch.tensor([3.0, 0.5]).view(2, 1, 1) + 2
    original = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))
    network = convert(original, Analytic.from_data(x), example_input=x[:1])
    y = network(x).movedim(1, 0).flatten(1)
    assert y.mean(1).abs().max() < 0.03
    assert (y.var(1) - 1).abs().max() < 0.04


# --- the normalizer ------------------------------------------------------------------------------


@pytest.fixture
def network() -> nn.Sequential:
    """A trained network of two normalizations, with start statistics that are not 0 and 1."""
    original = train_briefly(conv_net(2), SHAPES[2], steps=3)
    normalizer = Analytic((0.5, -1.0), (2.0, 0.7), eps=0.01)
    return convert(original, normalizer, example_input=torch.randn(2, *SHAPES[2]))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, *SHAPES[2])


def by_hand(network: nn.Sequential, x: Tensor, latents: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same network written out, with the moments of its statistics."""
    m = (torch.tensor([0.5, -1.0]).to(x), torch.tensor([2.0, 0.7]).to(x).square())
    for position in (0, 3):
        conv, layer = network[position], network[position + 1]
        x, m = conv(x), moments.convolution_moments(m, conv.weight, conv.bias)
        shift, scale = (part.view(*part.shape[:-1], -1, 1, 1) for part in latents.pop(0))
        mean, var, start_mean, start_std, weight, bias = (
            part.view(-1, 1, 1)
            for part in (*m, layer.start_mean, layer.start_std, layer.weight, layer.bias)
        )
        x_hat = ((x - mean) / (var + 0.01).sqrt() - start_mean) / start_std
        x = F.relu(weight * scale * (x_hat + shift) + bias)
        m = moments.leaky_relu_moments((layer.bias, layer.weight.square()))
    return network[8](x.mean((2, 3)))


def draw(*batch: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(*batch, n), torch.rand(*batch, n) + 0.5) for n in (4, 6)]


def packed(latents: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    shift, scale = (torch.cat(parts, -1) for parts in zip(*latents, strict=True))
    return shift, scale


@pytest.mark.parametrize("batch", [(), (1,), (5,)])
def test_it_follows_the_definition(network, x, batch):
    assert not torch.equal(network[4].start_mean, torch.zeros(6))
    latents = draw(*batch)
    expected = by_hand(network, x, list(latents))
    torch.testing.assert_close(
        LatentNetwork(network)(x, *packed(latents)), expected, rtol=1e-4, atol=1e-5
    )
    for layer, pair in zip((network[1], network[4]), latents, strict=True):
        give(layer, pair)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_definition(network, x):
    network, x = network.double(), x.double()
    latents = [(a.double(), b.double()) for a, b in draw()]
    targets = torch.randn(5, 3, dtype=torch.double)
    parameters = dict(network.named_parameters())

    def grads(y: Tensor) -> list[Tensor]:
        return torch.autograd.grad((y * targets).sum(), parameters.values())

    expected = grads(by_hand(network, x, list(latents)))
    found = grads(LatentNetwork(network)(x, *packed(latents)))
    for name, a, b in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    # and the statistics have a part in them: the gradient of the first layers is another without
    frozen = copy.deepcopy(network)
    for layer in (frozen[1], frozen[4]):
        fixed = tuple(part.detach() for part in layer.surroundings(LIKE.double()))
        layer.surroundings = lambda like, fixed=fixed: fixed
    for layer, pair in zip((frozen[1], frozen[4]), latents, strict=True):
        give(layer, pair)
    parameters = dict(frozen.named_parameters())
    without = grads(frozen(x))
    assert (without[0] - expected[0]).abs().max() > 0.1 * expected[0].abs().max()


def test_gradcheck_through_the_whole_network(network, x):
    network = network.double()
    latent = LatentNetwork(network)
    names, values = zip(*network.named_parameters(), strict=True)
    shift, scale = (part.double().requires_grad_() for part in packed(draw()))

    def evaluate(x: Tensor, shift: Tensor, scale: Tensor, *parameters: Tensor) -> Tensor:
        given = {f"network.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(latent, given, (x, shift, scale))

    inputs = (x[:2].double().requires_grad_(), shift, scale, *values)
    assert torch.autograd.gradcheck(evaluate, inputs, fast_mode=True)


def test_the_scale_of_weights_before_a_layer_does_not_matter(network, x):
    """As in batch normalization; with the bias, and but for eps."""
    network = convert(conv_net(2), Analytic(eps=0.0), example_input=x)
    before = network(x)
    with torch.no_grad():
        for parameter in network[3].parameters():
            parameter.mul_(7)
        network[0].bias.add_(3)  # cancels
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_batch_does_not_matter(network, x, training):
    network.train(training)
    together = network(x)
    alone = torch.cat([network(example[None]) for example in x])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    others = torch.cat([x[:1], 100 * torch.randn(7, *SHAPES[2])])
    torch.testing.assert_close(network(others)[:1], together[:1], rtol=1e-4, atol=1e-5)


def test_both_modes_are_one_function_without_dropout(network, x):
    assert torch.equal(network.train()(x), network.eval()(x))


def test_dropout_on_the_way_counts_in_training_mode():
    original = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 30), nn.BatchNorm1d(30))
    given = Analytic(1.0, 0.5)
    network = convert(original, given, example_input=torch.randn(3, 40))
    x = 1 + 0.5 * torch.randn(20_000, 40)
    for training in (True, False):
        y = network.train(training)(x)
        assert y.mean(0).abs().max() < 0.05
        assert (y.var(0) - 1).abs().max() < 0.08
        mean, var = network[2].surroundings(LIKE)
        weight = network[1].weight
        expected = 0.25 + (0.25 + 1) if training else 0.25  # (var + p mean^2) / (1 - p)
        torch.testing.assert_close(var, expected * weight.square().sum(1))
        torch.testing.assert_close(mean, weight.sum(1) + network[1].bias)


def test_per_example_latents_equal_one_example_after_the_other(network, x):
    latents = packed(draw(5))
    together = LatentNetwork(network)(x, *latents)
    loop = [
        LatentNetwork(network)(x[i : i + 1], latents[0][i], latents[1][i]) for i in range(len(x))
    ]
    torch.testing.assert_close(together, torch.cat(loop), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 1, 2, 7])
@pytest.mark.parametrize("examples", [1, 5])
def test_many_draws_in_chunks_equal_a_loop(network, x, chunk, examples):
    shift, scale = packed(draw(6, examples))
    latent = LatentNetwork(network, samples_per_call=chunk)
    together = latent(x, shift, scale)
    loop = torch.stack([latent(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-5)


def test_vmap_over_latents_of_the_layers_themselves(network, x):
    shift, scale = torch.randn(3, 1, 4), torch.rand(3, 1, 4) + 0.5

    def evaluate(shift: Tensor, scale: Tensor) -> Tensor:
        give(network[1], (shift, scale))
        return network(x)

    together = torch.func.vmap(evaluate)(shift, scale)
    loop = torch.stack([evaluate(*pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_vmap_over_weights(network, x, wrapped):
    """An ensemble: each member has statistics of its own."""
    target = LatentNetwork(network) if wrapped else network
    members = {k: torch.stack([v, 1.5 * v + 0.1]) for k, v in target.named_parameters()}

    def evaluate(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(target, parameters, (x,))

    together = torch.func.vmap(evaluate)(members)
    for number, output in enumerate(together):
        alone = evaluate({k: v[number] for k, v in members.items()})
        torch.testing.assert_close(output, alone, rtol=1e-4, atol=1e-5)


def test_functional_call_takes_the_statistics_along(network, x):
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    given = dict(other.named_parameters())
    found = torch.func.functional_call(network, given, (x,))
    assert torch.equal(found, other(x))
    assert not torch.allclose(found, network(x))


def test_moments_are_propagated_once_per_call_whatever_the_draws(network, x, monkeypatch):
    count = []
    real = Propagation.together
    monkeypatch.setattr(
        Propagation, "together", lambda *args: count.append(len(args[0])) or real(*args)
    )
    alone = []
    # the layers have their own, which is not asked
    monkeypatch.setattr(Propagation, "__call__", lambda self, like: alone.append(self))
    LatentNetwork(network, samples_per_call=2)(x, *packed(draw(7, 1)))
    assert count == [2]
    assert alone == []


def test_what_was_handed_over_is_taken_back(network, x):
    latent = LatentNetwork(network)
    latent(x)
    assert network[1].shared is network[4].shared is None
    with pytest.raises((ShapeError, RuntimeError)):
        latent(torch.randn(5, 3, 5, 6))
    assert network[1].shared is network[4].shared is None


def test_through_the_latent_network_or_not_is_the_same(network, x):
    torch.testing.assert_close(LatentNetwork(network)(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_go_their_own_way(network, x, copying):
    twin = copying(network)
    expected = network(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(-2)
    assert torch.equal(twin(x), expected)
    twin(x).sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    assert twin[1].surroundings.steps[0].module is twin[0]


def test_saved_and_loaded(network, x, tmp_path):
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    assert torch.equal(loaded(x), network(x))


def test_a_state_dict_goes_into_a_fresh_conversion(network, x):
    normalizer = Analytic((0.5, -1.0), (2.0, 0.7), eps=0.01)
    fresh = convert(conv_net(2), normalizer, example_input=x)
    assert not torch.allclose(fresh(x), network(x))
    assert fresh.load_state_dict(network.state_dict()) is not None
    torch.testing.assert_close(fresh(x), network(x), rtol=0, atol=0)
    keys = set(network.state_dict()) - set(conv_net(2).state_dict())
    assert keys == {"1.start_mean", "1.start_std", "4.start_mean", "4.start_std"}


def test_running_changes_nothing(network, x):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    attributes = [dict(vars(m)) for m in network.modules()]
    for training in (True, False):
        LatentNetwork(network.train(training))(x, *packed(draw(3, 1)))
        network(x)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    for old, module in zip(attributes, network.modules(), strict=True):
        old.pop("training")
        assert all(vars(module)[key] is value for key, value in old.items())


def test_double_precision(network, x):
    expected = network(x)
    network.double()
    found = network(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)
    assert network[4].normalizer.reference(network[4], x.double())[0].dtype == torch.float64


def test_channels_last_in_memory(network, x):
    found = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-6)


def test_bfloat16_autocast_keeps_statistics_in_float32(network, x):
    latents = packed(draw())
    exact = LatentNetwork(network)(x, *latents)
    statistics = network[4].normalizer.reference(network[4], LIKE)
    seen = []
    network[4].register_forward_pre_hook(lambda m, args: seen.append(m.shared))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = LatentNetwork(network)(x, *latents)
        under = network[4].normalizer.reference(network[4], LIKE.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).square().mean().sqrt() < 0.03 * exact.std()
    torch.testing.assert_close(under, statistics, rtol=0, atol=0)
    assert seen[0][0].dtype == torch.float32


def test_bfloat16_networks(network, x):
    exact = network(x)
    network.bfloat16()
    found = network(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).square().mean().sqrt() < 0.05 * exact.std()
    assert network[4].normalizer.reference(network[4], x.bfloat16())[0].dtype == torch.float32


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("latents", [False, True])
def test_without_affine_map(affine, latents):
    x = torch.randn(5, 3, 8)
    original = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=affine))
    layer = convert(original, Analytic(), example_input=x)[1]
    assert (layer.weight is None) is not affine
    mean, std = layer.normalizer.reference(layer, x)
    y = original[0](x)
    expected = (y - mean[:, None]) / std[:, None]
    if latents:
        give(layer, (torch.randn(4), torch.rand(4) + 0.5))
        expected = layer.latents[1][:, None] * (expected + layer.latents[0][:, None])
    torch.testing.assert_close(layer(y), expected, rtol=1e-4, atol=1e-5)


def test_projection_is_before_the_start(network, x):
    layer, y = network[1], network[0](x)
    mean, std = layer.normalizer.moments(layer, y)
    found = layer.normalizer.projection(layer, y)
    expected = (y - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_eps_is_the_layers_own_unless_given():
    x = torch.randn(3, 5)
    original = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, eps=0.5))
    for normalizer, eps in ((Analytic(), 0.5), (Analytic(eps=0.0), 0.0), (Analytic(eps=2.0), 2.0)):
        layer = convert(original, normalizer, example_input=x)[1]
        assert layer.normalizer.eps == eps
        _, std = layer.normalizer.moments(layer, x)
        torch.testing.assert_close(std.square(), original[0].weight.square().sum(1) + eps)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c), nn.InstanceNorm2d])
def test_start_statistics_come_from_batch_normalization_alone(norm):
    original = conv_net(2, norm)
    network = convert(original, Analytic(), example_input=torch.randn(2, *SHAPES[2]))
    for position in (1, 4):
        assert torch.equal(
            network[position].start_mean, torch.zeros_like(network[position].start_mean)
        )
        assert torch.equal(
            network[position].start_std, torch.ones_like(network[position].start_std)
        )


def test_training_by_svi():
    """Loss falls, every parameter of network and guide moves, and the statistics move along."""
    torch.manual_seed(2)
    x = torch.randn(64, *SHAPES[1]) * torch.tensor([1.0, 3.0])[:, None]
    y = (x[:, 0].mean(1) > 0).long() + (x[:, 1].mean(1) > 0).long()
    network = convert(conv_net(1), Analytic.from_data(x), example_input=x[:2])
    data_dependent_start(network, x)
    model = NormalizationModel(network, Categorical(), 64)
    guide = guides.MeanField(model)
    before = {k: v.detach().clone() for k, v in (*named(network), *named(guide))}
    statistics = network[4].normalizer.reference(network[4], LIKE)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceMeanField_ELBO())
    losses = [svi.step(x, y) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    after = dict((*named(network), *named(guide)))
    assert all(not torch.equal(before[k], after[k]) for k in before)
    moved = network[4].normalizer.reference(network[4], LIKE)
    assert (moved[1] / statistics[1] - 1).abs().max() > 0.01
    assert torch.equal(network[4].start_mean, dict(network.named_buffers())["4.start_mean"])


def named(module: nn.Module):
    return ((f"{type(module).__name__}.{k}", v) for k, v in module.named_parameters())


def test_from_data_takes_mean_and_std_per_channel():
    x = torch.randn(50, 3, 4, 5, dtype=torch.double) * torch.tensor([1.0, 2, 3]).view(3, 1, 1) + 4
    normalizer = Analytic.from_data(x, eps=0.1)
    flat = x.movedim(1, 0).flatten(1)
    assert normalizer.input_mean == pytest.approx(flat.mean(1).tolist())
    assert normalizer.input_std == pytest.approx(flat.std(1, correction=0).tolist())
    assert normalizer.eps == 0.1
    assert normalizer == Analytic(normalizer.input_mean, normalizer.input_std, 0.1)
    assert hash(normalizer) == hash(Analytic.from_data(x, eps=0.1))


def test_from_data_lifts_channels_that_hardly_vary():
    x = torch.randn(50, 3) * torch.tensor([2.0, 0.0, 1e-9])
    std = Analytic.from_data(x).input_std
    assert std[1] == std[2] == pytest.approx(1e-3 * std[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_from_data_refuses_what_has_no_moments(value):
    x = torch.randn(5, 2)
    x[1, 1] = value
    with pytest.raises(StatisticsError, match="constant or not finite"):
        Analytic.from_data(x)
    with pytest.raises(StatisticsError, match="constant or not finite"):
        Analytic.from_data(torch.full((5, 2), 3.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_mean": math.nan}, "input_mean must be finite, got nan"),
        ({"input_mean": (0.0, math.inf)}, r"input_mean must be finite, got \(0.0, inf\)"),
        ({"input_mean": ()}, r"input_mean must be finite, got \(\)"),
        ({"input_std": math.inf}, "input_std must be finite"),
        ({"input_std": 0.0}, "input_std must be positive, got 0.0"),
        ({"input_std": (1.0, -2.0)}, "input_std must be positive"),
    ],
)
def test_input_statistics_are_checked(options, message):
    with pytest.raises(OptionError, match=f"^Analytic: {message}"):
        Analytic(**options)


def test_it_has_to_know_the_network():
    layer = LatentNorm(Analytic(), 4)
    layer.name = "bn7"
    with pytest.raises(
        ConversionError, match="bn7: an Analytic normalizer has to know the network"
    ):
        layer(torch.randn(3, 4))
    with pytest.raises(OptionError, match="Analytic normalizer needs example_input"):
        convert(mlp(), Analytic())


def test_a_negative_eps_is_refused():
    with pytest.raises(
        OptionError, match="Analytic: eps must be finite and not negative, got -1.0"
    ):
        Analytic(eps=-1.0)
