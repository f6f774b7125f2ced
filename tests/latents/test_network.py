from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import ConversionError, OptionError, ShapeError, StatisticsError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import (
    Analytic,
    Batch,
    Group,
    Instance,
    Layer,
    Population,
    Weight,
    trust_statistics,
)
from pyronorm.normalizers.handover import handed_over
from tests.giving import give
from tests.nets import SHAPES, ResNet, conv_net, mlp, train_briefly

NORMALIZERS = [Batch(), Population(), Group(2), Layer(), Instance(), Weight(), Analytic()]


@pytest.fixture(params=NORMALIZERS, ids=lambda n: type(n).__name__)
def network(request) -> LatentNetwork:
    original = train_briefly(conv_net(2), SHAPES[2], steps=3).eval()
    example = torch.randn(2, *SHAPES[2])
    return LatentNetwork(convert(original, request.param, example_input=example))


def draw(network: LatentNetwork, *batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = (*batch, network.space.num_channels)
    return torch.randn(size) * 0.3, torch.rand(size) + 0.5


def by_hand(network: LatentNetwork, x, shift, scale) -> torch.Tensor:
    """One draw for all examples, handed to the layers without LatentNetwork's help."""
    shifts, scales = network.space.unpack(shift), network.space.unpack(scale)
    for name in network.space.names:
        give(network.network.get_submodule(name), (shifts[name], scales[name]))
    y = network.network(x)
    for layer in network.layers:
        give(layer, None)
    return y


def test_one_draw_reaches_every_layer(network):
    x = torch.randn(5, *SHAPES[2])
    shift, scale = draw(network)
    torch.testing.assert_close(network(x, shift, scale), by_hand(network, x, shift, scale))


def test_neutral_latents_are_the_network_itself(network):
    x, c = torch.randn(5, *SHAPES[2]), network.space.num_channels
    expected = network.network(x)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x, torch.zeros(c), torch.ones(c)), expected)


def test_one_draw_per_example(network):
    network.eval()  # batch statistics would mix the examples
    x = torch.randn(5, *SHAPES[2])
    shift, scale = draw(network, 5)
    expected = torch.stack(
        [by_hand(network, x[i : i + 1], shift[i], scale[i])[0] for i in range(5)]
    )
    torch.testing.assert_close(network(x, shift, scale), expected, rtol=1e-4, atol=1e-5)


def test_many_draws_in_channels_last(network):
    network.eval().to(memory_format=torch.channels_last)
    x = torch.randn(5, *SHAPES[2]).to(memory_format=torch.channels_last)
    shift, scale = draw(network, 4, 1)
    expected = torch.stack([network(x, a[0], b[0]) for a, b in zip(shift, scale, strict=True)])
    torch.testing.assert_close(network(x, shift, scale), expected)


@pytest.mark.parametrize("samples_per_call", [None, 3])
def test_many_draws_under_autocast(network, samples_per_call):
    network.eval().samples_per_call = samples_per_call
    x = torch.randn(5, *SHAPES[2])
    shift, scale = draw(network, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.stack([network(x, a[0], b[0]) for a, b in zip(shift, scale, strict=True)])
        found = network(x, shift, scale)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found, expected, rtol=0.05, atol=0.02
    )  # other batches, other kernels


@pytest.mark.parametrize("samples_per_call", [None, 1, 3])
@pytest.mark.parametrize("examples", [1, 5])
@pytest.mark.parametrize("samples", [(1,), (8,), (2, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_many_draws_equal_a_loop(network, samples, examples, samples_per_call, training):
    network.train(training)
    network.samples_per_call = samples_per_call
    x = torch.randn(5, *SHAPES[2])
    shift, scale = draw(network, *samples, examples)
    flat = zip(shift.flatten(0, -3), scale.flatten(0, -3), strict=True)
    expected = torch.stack([network(x, *pair) for pair in flat]).view(*samples, 5, 3)
    torch.testing.assert_close(network(x, shift, scale), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_running_leaves_nothing_behind(network, training):
    network.train(training)
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(5, *SHAPES[2])
    for batch in ((), (1,), (5,), (4, 1)):
        network(x, *draw(network, *batch))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(layer.latents is None for layer in network.layers)


def test_a_failing_run_leaves_nothing_behind(network):
    with pytest.raises(RuntimeError):
        network(torch.randn(5, 9, 5, 6), *draw(network))
    assert all(layer.latents is None for layer in network.layers)


def test_gradients_of_many_draws_equal_a_loop(network):
    x = torch.randn(5, *SHAPES[2])
    shift, scale = (value.requires_grad_() for value in draw(network, 4, 1))
    wanted = [shift, scale, *network.parameters()]
    together = torch.autograd.grad(
        network(x, shift, scale).square().sum(), wanted, allow_unused=True
    )
    loop = sum(network(x, shift[s], scale[s]).square().sum() for s in range(4))
    for a, b in zip(together, torch.autograd.grad(loop, wanted, allow_unused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torch_compile_in_one_graph():
    # In a process of its own: the compiler cannot see through this suite's shape checks.
    script = Path(__file__).with_name("compile_script.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kinds = ["Batch", "Group", "Weight", "Analytic", "BatchWhitening"]
    assert result.stdout.split() == kinds


def test_user_vmap_over_the_pure_function(network):
    x = torch.randn(5, *SHAPES[2])
    shift, scale = draw(network, 3)
    together = torch.func.vmap(lambda a, b: network(x, a, b))(shift, scale)
    expected = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 9, 8), (3, 12, 5)])
def test_residual_network_with_in_place_operations(shape):
    network = LatentNetwork(convert(train_briefly(ResNet(), shape, steps=2))).eval()
    x = torch.randn(4, *shape)
    shift, scale = draw(network, 6, 1)
    expected = torch.stack(
        [by_hand(network, x, a[0], b[0]) for a, b in zip(shift, scale, strict=True)]
    )
    torch.testing.assert_close(network(x, shift, scale), expected, rtol=1e-4, atol=1e-5)


def test_dropout_differs_between_draws():
    torch.manual_seed(3)
    network = nn.Sequential(nn.GroupNorm(1, 4), nn.Dropout(0.5))
    network = LatentNetwork(convert(network), samples_per_call=4)
    latents = torch.zeros(9, 1, 4), torch.ones(9, 1, 4)
    zeros = network(torch.randn(5, 4), *latents) == 0
    assert len(torch.unique(zeros.flatten(1), dim=0)) == 9


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)

    def forward(self, x):
        y = self.norm(x)
        return y if y.sum().item() > 0 else -y


class Numpy(Branching):
    def forward(self, x):
        y = self.norm(x)
        return y * float(y.detach().numpy().max())


class Nonzero(Branching):
    def forward(self, x):
        y = self.norm(x)
        return y.index_add(0, torch.nonzero(y[:, 0] > 0).squeeze(1), y[y[:, 0] > 0])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell = nn.LayerNorm(4), nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        lengths = torch.arange(len(x)) % 3 + 1
        packed = nn.utils.rnn.pack_padded_sequence(
            self.norm(x[:, None].expand(-1, 3, -1)), lengths, True, False
        )
        return self.cell(packed)[1][-1]


class Recurrent(nn.Module):
    def __init__(self, cell) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)
        self.cell = cell(4, 5, batch_first=True)

    def forward(self, x):
        return self.cell(self.norm(x[..., None]).movedim(1, 2))[0][:, -1]


@pytest.mark.parametrize(
    "build",
    [
        Branching,
        Numpy,
        Nonzero,
        Packed,
        *(lambda c=c: Recurrent(c) for c in (nn.GRU, nn.LSTM, nn.RNN)),
    ],
)
def test_a_network_that_vmap_cannot_run(build):
    network = LatentNetwork(convert(build()))
    x, (shift, scale) = torch.randn(5, 4), draw(network, 9, 1)
    expected = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(network(x, shift, scale), expected)


def test_an_error_of_the_network_itself_is_not_hidden():
    class Failing(Branching):
        fails = True

        def forward(self, x):
            if self.norm.latents is not None and self.norm.latents[0][0, 0] > 1 and self.fails:
                raise RuntimeError("mine")
            return self.norm(x)

    network = LatentNetwork(convert(Failing()))
    x, (shift, scale) = torch.randn(5, 4), draw(network, 9, 5)
    shift[0], shift[1:] = 0, 2
    with pytest.raises(RuntimeError, match="mine"):
        network(x, shift, scale)
    network.network.fails = False
    assert network(x, shift, scale).shape == (9, 5, 4)


def test_reference_statistics():
    original = train_briefly(mlp(), (5,), steps=3)
    network = LatentNetwork(convert(original))
    mean, std = network.reference_statistics()
    torch.testing.assert_close(
        mean, torch.cat([original[1].running_mean, original[4].running_mean])
    )
    var = torch.cat([original[1].running_var, original[4].running_var])
    torch.testing.assert_close(std, (var + 1e-5).sqrt())
    partly = LatentNetwork(convert(original, Group(2), only="4"))  # the other one is not latent
    assert all(torch.isnan(part).all() for part in partly.reference_statistics())


@pytest.mark.parametrize("normalizer", [Weight(), Analytic()])
def test_reference_statistics_read_off_the_weights(normalizer):
    """Converted from a trained network they are its population statistics."""
    original = train_briefly(conv_net(2), SHAPES[2], steps=3).eval()
    network = LatentNetwork(convert(original, normalizer, example_input=torch.randn(2, *SHAPES[2])))
    norms = [m for m in original.modules() if isinstance(m, nn.BatchNorm2d)]
    convs = [m for m in original.modules() if isinstance(m, nn.Conv2d)]
    mean, std = network.reference_statistics()
    expected = torch.cat([n.running_mean for n in norms])
    if isinstance(normalizer, Weight):  # the bias of a convolution is dropped
        dropped = [c.bias if c.bias is not None else torch.zeros(c.out_channels) for c in convs]
        expected = expected - torch.cat(dropped[: len(norms)]).detach()
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    var = torch.cat([n.running_var for n in norms])
    torch.testing.assert_close(std, (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-6)
    assert not mean.requires_grad


def test_mixed_kinds_fill_unknown_statistics_with_nan():
    network = nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm1d(2))
    network = convert(network)
    with pytest.raises(StatisticsError, match="no population statistics"):
        LatentNetwork(network).reference_statistics()
    trust_statistics(network)
    mean, std = LatentNetwork(network).reference_statistics()
    assert mean.isnan().tolist() == std.isnan().tolist() == [True, True, False, False]


def test_stale_or_missing_statistics_do_not_pass_in_evaluation_mode():
    network = LatentNetwork(convert(conv_net(2)))
    x = torch.randn(5, *SHAPES[2])
    network(x)  # training mode does not use them
    with pytest.raises(StatisticsError, match="no population statistics"):
        network.eval()(x)
    network = LatentNetwork(convert(train_briefly(conv_net(2), SHAPES[2], steps=1))).eval()
    network(x)
    with torch.no_grad():
        network.network[0].weight.mul_(1.01)
    with pytest.raises(StatisticsError, match="stale"):
        network(x, *draw(network))
    with pytest.raises(StatisticsError, match="stale"):
        network.train().check_statistics()


def test_shapes_that_do_not_fit_are_refused():
    network = LatentNetwork(convert(mlp(norm=lambda c: nn.GroupNorm(2, c))))
    x, c = torch.randn(5, 5), network.space.num_channels
    good, bad = torch.ones(c), torch.ones(c + 1)
    with pytest.raises(ShapeError, match=rf"shift: expected {c} channels .* got .*\({c + 1},\)"):
        network(x, bad, good)
    with pytest.raises(ShapeError, match=f"scale: expected {c} channels"):
        network(x, good, bad)
    with pytest.raises(ShapeError, match="one shape"):
        network(x, good, good[None])
    for others in ((x,), (x, x)):
        with pytest.raises(ShapeError, match=r"one argument: latent_network\(\(a, b\)\)"):
            network(x, *others)
    with pytest.raises(ShapeError, match="both shift and scale"):
        network(x, good)
    many = torch.ones(8, c)
    with pytest.raises(
        ShapeError, match=r"of length 1 or 5 .* \(8, 10\).* \(samples, 1, channel\)"
    ):
        network(x, many, many)
    with pytest.raises(OptionError, match="samples_per_call must be at least 1"):
        LatentNetwork(network.network, samples_per_call=0)
    with pytest.raises(ConversionError, match="convert it first"):
        LatentNetwork(nn.Linear(2, 2))


def test_of_wraps_only_once():
    network = convert(conv_net(2))
    latent = LatentNetwork.of(network)
    assert latent.network is network
    assert LatentNetwork.of(latent) is latent


def test_latents_of_a_half_precision_network_are_float32():
    network = LatentNetwork(convert(conv_net(2)).bfloat16())
    assert network.like.dtype == torch.float32
    assert LatentNetwork(convert(conv_net(2)).double()).like.dtype == torch.float64
    stateless = nn.Sequential(nn.GroupNorm(1, 4, affine=False))
    assert LatentNetwork(convert(stateless)).like.dtype == torch.float32


class Twin(nn.Module):
    """Calls a network of its own for two inputs."""

    def __init__(self, inner: LatentNetwork) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) - self.inner(-x)


def test_a_network_inside_another_keeps_the_outer_latents():
    inner = LatentNetwork(convert(nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4))))
    outer = LatentNetwork(Twin(inner))
    x, (shift, scale) = torch.randn(5, 3), draw(outer)
    expected = inner(x, shift, scale) - inner(-x, shift, scale)
    torch.testing.assert_close(outer(x, shift, scale), expected)
    own = draw(outer)
    with handed_over(dict(zip(outer.layers, [(shift, scale)], strict=True))):
        torch.testing.assert_close(inner(x, *own), inner(x, *own))
        torch.testing.assert_close(inner(x), inner(x, shift, scale))
    assert all(layer.latents is None for layer in outer.layers)


def test_replicas_of_data_parallel_hand_over_to_their_own_layers():
    network = LatentNetwork(convert(conv_net(2, norm=lambda c: nn.GroupNorm(2, c))))
    x, (shift, scale) = torch.randn(5, *SHAPES[2]), draw(network)
    # What torch.nn.parallel.replicate does, on one device.
    copies = {m: m._replicate_for_data_parallel() for m in network.modules()}
    for original, replica in copies.items():
        replica._parameters = dict(original._parameters)
        for name, child in original._modules.items():
            replica._modules[name] = copies[child]
            setattr(replica, name, copies[child])
    torch.testing.assert_close(copies[network](x, shift, scale), network(x, shift, scale))


def test_latents_of_another_precision_are_refused():
    latent = LatentNetwork(convert(mlp(), Group(2)))
    shift, scale = torch.zeros(latent.space.num_channels), torch.ones(latent.space.num_channels)
    with pytest.raises(ShapeError, match="scale is in double precision, and the network is not"):
        latent(torch.randn(3, 5), shift, scale.double())
    latent.double()(torch.randn(3, 5).double(), shift.double(), scale.double())
