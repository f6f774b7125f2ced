"""Compile networks in one graph; run by test_network.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from pyronorm.conversion import convert
from pyronorm.infer import estimate_population_statistics, standardize_latents
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import Analytic, Batch, BatchWhitening, Group, Weight
from pyronorm.stats import Eigen
from tests.nets import SHAPES, conv_net, train_briefly

for normalizer in (Batch(), Group(2), Weight(), Analytic(), BatchWhitening(2, Eigen())):
    torch.compiler.reset()
    original = train_briefly(conv_net(2), SHAPES[2], steps=2).eval()
    x = torch.randn(5, *SHAPES[2])
    network = LatentNetwork(convert(original, normalizer, example_input=x)).eval()
    if isinstance(normalizer, BatchWhitening):
        estimate_population_statistics(network, x)
    if isinstance(normalizer, Weight):
        standardize_latents(network, x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    c = network.space.num_channels
    for batch in ((), (5,), (6, 1)):
        shift, scale = torch.randn(*batch, c), torch.rand(*batch, c) + 0.5
        shift.requires_grad_()
        eager, fast = network(x, shift, scale), compiled(x, shift, scale)
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-5)
        (a,), (b,) = (torch.autograd.grad(y.square().sum(), shift) for y in (eager, fast))
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
        assert all(layer.latents is None for layer in network.layers)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            eager, fast = network(x, shift, scale), compiled(x, shift, scale)
        assert fast.dtype == eager.dtype == torch.bfloat16
        torch.testing.assert_close(fast, eager, rtol=0.05, atol=0.05)
    print(type(normalizer).__name__)

torch.compiler.reset()
network = convert(torch.compile(original, backend="eager"))  # compiled first, and then converted
torch.testing.assert_close(network(x), original(x))
latent = LatentNetwork(network)
shift, scale = torch.randn(6, 1, latent.space.num_channels), torch.rand(6, 1, 1) + 0.5
scale = scale.expand_as(shift)
eager = LatentNetwork(convert(original))(x, shift, scale)
torch.testing.assert_close(latent(x, shift, scale), eager, rtol=1e-4, atol=1e-5)
