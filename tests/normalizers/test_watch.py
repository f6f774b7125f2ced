from __future__ import annotations

import copy
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import StatisticsError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import trust_statistics
from pyronorm.normalizers.freshness import invalidate_statistics
from pyronorm.normalizers.watch import verified, watch
from tests.nets import SHAPES, change, conv_net, train_briefly


def test_a_network_trained_by_a_plain_loop_is_not_evaluated():
    torch.manual_seed(0)
    network = convert(conv_net(2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x = torch.randn(7, *SHAPES[2])
    network(x).square().sum().backward()
    optimizer.step()
    with pytest.raises(StatisticsError, match="no population statistics"):
        network.eval()(x)
    pretrained = convert(train_briefly(conv_net(2), SHAPES[2], steps=2))
    pretrained.eval()(x)
    pretrained.train()(x).square().sum().backward()
    torch.optim.SGD(pretrained.parameters(), 0.1).step()
    with pytest.raises(StatisticsError, match="stale"):
        pretrained.eval()(x)
    trust_statistics(pretrained)
    pretrained(x)
    with torch.no_grad():
        invalidate_statistics(pretrained)
    with pytest.raises(StatisticsError, match="no population statistics"):
        pretrained(x)


def test_a_state_dict_saved_with_stale_statistics_says_so(trained):
    network = convert(trained)
    assert network.state_dict()["1.num_batches_tracked"] == 3
    change(network)
    whole = nn.ModuleDict({"net": network})
    assert whole.state_dict()["net.1.num_batches_tracked"] == 0
    assert network[1].num_batches_tracked == 3
    other = convert(conv_net(2))
    other.load_state_dict(network.state_dict())
    with pytest.raises(StatisticsError, match="has no population statistics"):
        other.eval()(torch.randn(7, *SHAPES[2]))


def test_copies_and_pickles_have_watches_of_their_own(trained, tmp_path):
    network = convert(trained).eval()
    x = torch.randn(7, *SHAPES[2])
    network(x)
    torch.save(network, tmp_path / "network.pt")
    for other in (
        copy.deepcopy(network),
        torch.load(tmp_path / "network.pt", weights_only=False),
    ):
        other(x)
        assert watch(other) is not watch(network)
        change(other)
        with pytest.raises(StatisticsError):
            other(x)
    network(x)


def test_replaced_modules_and_tensors_are_noticed(trained):
    x = torch.randn(7, *SHAPES[2])
    for replace in (
        lambda n: n.__setitem__(0, nn.Conv2d(2, 4, 3)),
        lambda n: setattr(n[0], "weight", nn.Parameter(n[0].weight.detach() * 1.1)),
        lambda n: n[1].register_buffer("running_mean", n[1].running_mean + 1),
    ):
        network = convert(trained).eval()
        network(x)
        replace(network)
        with pytest.raises(StatisticsError, match="stale"):
            network(x)


def test_weights_of_function_transforms_are_the_callers_arguments(trained):
    network = convert(trained).eval()
    latent = LatentNetwork(network).eval()
    x = torch.randn(7, *SHAPES[2])
    weights = {k: v.detach() for k, v in network.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(network, weights, (x,)).square().sum()

    found = torch.func.grad(loss)(weights)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)
    inner = {f"network.{k}": v for k, v in weights.items()}
    many = {k: torch.stack([v, v]) for k, v in inner.items()}
    both = torch.func.vmap(lambda w: torch.func.functional_call(latent, w, (x,)))(many)
    torch.testing.assert_close(both[1], network(x))
    with pytest.raises(StatisticsError, match="stale"):
        torch.func.functional_call(network, {k: v + 1 for k, v in weights.items()}, (x,))


def test_verified_checks_once(trained):
    network = LatentNetwork(convert(trained)).eval()
    x = torch.randn(7, *SHAPES[2])
    with verified(network.network):
        change(network.network)
        network(x)
    with pytest.raises(StatisticsError), verified(network.network):
        pass
    with pytest.raises(StatisticsError):
        network(x)


def test_inference_tensors_are_read(trained):
    with torch.inference_mode():
        network = copy.deepcopy(convert(trained)).eval()
        x = torch.randn(7, *SHAPES[2])
        network(x)
        network[0].weight.mul_(1.1)
        with pytest.raises(StatisticsError, match="stale"):
            network(x)


def test_parts_of_a_stale_network_are_not_run(trained):
    x = torch.randn(7, *SHAPES[2])
    network = convert(trained).eval()
    parts = (network[:4], nn.Sequential(*list(network.children())[:2]), lambda x: network[1](x))
    inputs = (x, x, network[0](x))
    for part, given in zip(parts, inputs, strict=True):
        part(given)
    change(network)  # before the first of these layers: only the network shows it
    for part, given in zip(parts, inputs, strict=True):
        with pytest.raises(StatisticsError, match=r"stale.*'0.weight'"):
            part(given)
    trust_statistics(network)
    for part, given in zip(parts, inputs, strict=True):
        part(given)
    with torch.no_grad():
        network[1].running_var.fill_(100.0)
    layer = network[1]
    del network, parts, part
    gc.collect()
    with pytest.raises(StatisticsError, match=r"stale.*'running_var'"):
        layer(inputs[2])


def test_parts_of_a_copy_are_checked_with_the_copy(trained):
    x = torch.randn(7, *SHAPES[2])
    network = convert(trained).eval()
    other = copy.deepcopy(network)
    change(other)
    network[:4](x)
    with pytest.raises(StatisticsError, match="stale"):
        other[:4](x)


def test_an_interrupted_call_leaves_the_next_one_checked(trained):
    network = convert(trained).eval()
    with pytest.raises(RuntimeError):
        network(torch.randn(7, 5, 3, 3))
    change(network)
    with pytest.raises(StatisticsError):
        network(torch.randn(7, *SHAPES[2]))


def test_compiled_code_checks_at_every_call():
    # In a process of its own: the compiler cannot see through this suite's shape checks.
    script = Path(__file__).with_name("compile_stale_script.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
