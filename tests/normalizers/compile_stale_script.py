"""Compiled networks refuse stale statistics; run by test_watch.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from pyronorm.conversion import convert
from pyronorm.errors import StatisticsError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import trust_statistics
from tests.nets import SHAPES, conv_net, train_briefly

if not hasattr(torch.compiler, "is_exporting"):
    sys.exit()  # torch 2.6: compiled code does not check


def refused(function, x) -> bool:
    try:
        function(x)
    except StatisticsError as error:
        return "stale" in str(error)
    return False


x = torch.randn(5, *SHAPES[2])
for latent, grad in ((False, True), (True, False)):
    torch.compiler.reset()
    converted = convert(train_briefly(conv_net(2), SHAPES[2], steps=2))
    network = (LatentNetwork(converted) if latent else converted).train()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(x), network(x))
        network.eval()
        torch.testing.assert_close(compiled(x), network(x))
        with torch.no_grad():
            converted[0].weight.data.mul_(2)
        assert refused(compiled, x)
        trust_statistics(converted)
        torch.testing.assert_close(compiled(x), network(x))
        with torch.no_grad():
            converted[3].weight.neg_()
        assert refused(compiled, x)
        network.train()
        compiled(x)
exported = torch.export.export(convert(train_briefly(conv_net(2), SHAPES[2], steps=2)).eval(), (x,))
assert "pyronorm" not in str(exported.graph)
