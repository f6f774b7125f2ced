"""Whole networks: conversion, the state dict, latents that arrive, one step of SVI."""

from __future__ import annotations

import copy
import math
from functools import cache

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyronorm as pn
from pyronorm.normalizers import LatentNorm
from tests.architectures import ARCHITECTURES

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.RMSNorm)


@cache
def trained(name: str) -> nn.Module:
    """A network with statistics of two batches and an affine map of its own; not to be changed."""
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture.make()
        for module in network.modules():
            if isinstance(module, NORMS):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                if getattr(module, "bias", None) is not None:
                    nn.init.uniform_(module.bias, -0.2, 0.2)
        with torch.no_grad():
            for _ in range(2):
                network(architecture.inputs(4))
    return network.eval()


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def test_conversion_keeps_function_keys_and_original(name):
    original, x = trained(name), ARCHITECTURES[name].inputs(3)
    before = copy.deepcopy(original.state_dict())
    with torch.no_grad():
        expected = original(x)
        network = pn.convert(original)
        assert type(network) is type(original)
        assert not network.training
        assert (network(x) - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))
        # the same keys, loadable both ways
        assert list(network.state_dict()) == list(before)
        fresh = ARCHITECTURES[name].make().eval()
        assert (fresh(x) - expected).abs().max() > 1e-3
        fresh.load_state_dict(network.state_dict())
        assert torch.equal(fresh(x), expected)
        again = pn.convert(ARCHITECTURES[name].make()).eval()
        again.load_state_dict(before)
        assert torch.equal(again(x), network(x))
        # the original is untouched and shares nothing
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())
    assert not any(isinstance(module, LatentNorm) for module in original.modules())


def test_the_report_counts_layers_and_channels(name):
    architecture, original = ARCHITECTURES[name], trained(name)
    report = pn.conversion_report(pn.convert(original))
    assert (report.num_layers, report.num_channels) == (architecture.layers, architecture.channels)
    assert str(report).endswith(f"\n{report.num_layers} layers, {report.num_channels:,} channels")
    norms = {n: m for n, m in original.named_modules() if isinstance(m, NORMS)}
    assert [(row.layer, row.original, row.channels) for row in report.converted] == [
        (n, type(m).__name__, len(m.weight)) for n, m in norms.items()
    ]
    assert not report.unconverted


def test_latents_of_every_layer_reach_the_output(name):
    """In evaluation mode without gradients, where torch takes short cuts."""
    architecture = ARCHITECTURES[name]
    network = pn.LatentNetwork(pn.convert(trained(name)))
    x, channels = architecture.inputs(2), network.space.num_channels
    layers = torch.arange(channels).split(network.space.sizes)
    with torch.no_grad():
        neutral = network(x)
        # every layer of the small ones, a few of ResNet-50
        for index in layers[:: math.ceil(len(layers) / 16)]:
            shift, scale = torch.zeros(channels), torch.ones(channels)
            shift[index], scale[index] = 0.5, 2.0
            assert (network(x, shift, scale) - neutral).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["ViT", "RMS transformer"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention in vmap
def test_many_draws_of_a_transformer_equal_a_loop(name):
    architecture = ARCHITECTURES[name]
    network = pn.LatentNetwork(pn.convert(trained(name)), samples_per_call=3)
    x, channels = architecture.inputs(2), network.space.num_channels
    for examples in (1, 2):
        shift, scale = torch.randn(5, examples, channels), torch.rand(5, examples, channels) + 0.5
        with torch.no_grad():
            loop = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
            together = network(x, shift, scale)
        assert together.shape == (5, 2, 3)
        torch.testing.assert_close(together, loop, rtol=1e-4, atol=1e-5)


def test_one_step_of_svi(name):
    architecture = ARCHITECTURES[name]
    network = pn.convert(trained(name)).train()
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=40)
    guide = pn.guides.MeanField(model)
    x, y = architecture.inputs(4), architecture.labels(4)
    parameters = {
        **{f"network.{n}": p for n, p in network.named_parameters()},
        **{f"guide.{n}": p for n, p in guide.named_parameters()},
    }
    before = {n: p.detach().clone() for n, p in parameters.items()}
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x, y)
    assert math.isfinite(loss)
    unchanged = [n for n, p in parameters.items() if torch.equal(before[n], p)]
    assert all(n.endswith("bias") for n in unchanged)  # those that a normalization cancels
    assert all(bool(p.isfinite().all()) for p in parameters.values())
    assert all(torch.equal(buffers[n], b) for n, b in network.named_buffers())
