"""Propagated moments against those of the data, layer by layer: what independence costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import record
from pyronorm.conversion import convert
from pyronorm.normalizers import Analytic, LatentNorm
from pyronorm.propagation.propagate import build_propagation
from pyronorm.propagation.tracing import trace

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def start(network: nn.Module) -> nn.Module:
    """Weights of variance 2 / fan-in, and biases that are not 0."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, *CONVS)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
    return network


def chain(layers: Sequence[nn.Module], between: Callable[[], Sequence[nn.Module]]) -> nn.Module:
    """Layers with ReLU, and more, between them."""
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [layer, nn.ReLU(), *between()]
    return nn.Sequential(*parts)


def convs(dims: int, width: int, inputs: int, depth: int, **options) -> list[nn.Module]:
    """Convolutions with kernel size 3."""
    sizes = [inputs] + [width] * depth
    return [CONVS[dims - 1](a, b, 3, **options) for a, b in pairwise(sizes)]


class Residual(nn.Module):
    """Sums without normalization: x + conv(relu(x)), where x is the sum so far."""

    def __init__(self, width: int, inputs: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(depth + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Sum of all branches."""
        x = self.first(x)
        for relu, conv in zip(self.relus, self.convs, strict=False):
            x = x + conv(relu(x))
        return self.relus[-1](x)


class Dense(nn.Module):
    """Every convolution sees the concatenation of all before it."""

    def __init__(self, width: int, inputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs + i * width for i in range(depth)]
        self.convs = nn.ModuleList(nn.Conv2d(n, width, 3, padding=1) for n in sizes)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenation of all."""
        for relu, conv in zip(self.relus, self.convs, strict=False):
            x = torch.cat([x, relu(conv(x))], 1)
        return x


def white(*shape: int) -> Callable[[int], Tensor]:
    """Independent standard normal values."""
    return lambda count: torch.randn(count, *shape)


def smooth(*shape: int) -> Callable[[int], Tensor]:
    """Standard normal values, correlated between neighbours: a blurred image of noise."""
    taps = torch.exp(-torch.arange(-4.0, 5).square() / (2 * 1.5**2))
    taps = taps / taps.square().sum().sqrt()

    def draw(count: int) -> Tensor:
        channels, height, width = shape
        x = torch.randn(count * channels, 1, height + 8, width + 8)
        x = F.conv2d(F.conv2d(x, taps.view(1, 1, 9, 1)), taps.view(1, 1, 1, 9))
        return x.view(count, *shape)

    return draw


@torch.no_grad()
def measured(
    network: nn.Module, names: Sequence[str], draw: Callable[[int], Tensor], batches: int
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance per channel of the inputs of some layers, over data."""
    sums: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            flat = args[0].movedim(1, 0).flatten(1).double()
            sums[name].append(torch.stack([flat.mean(1), flat.square().mean(1)]))

        return note

    handles = [network.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    for _ in range(batches):
        network(draw(64))
    for handle in handles:
        handle.remove()
    pairs = [torch.stack(found).mean(0) for found in sums.values()]
    return [(mean, square - mean.square()) for mean, square in pairs]


def errors(found: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """How far propagated moments are from those of the data, over the channels.

    Returns:
        ``mean``: root mean square of the error of the mean, in standard deviations of the data;
        ``bias``: mean of the variance over that of the data, less 1;
        ``variance``: root mean square of the same.
    """
    mean, var = (part.detach().double() for part in found)
    shift = (mean - data[0]) / data[1].sqrt()
    ratio = var / data[1] - 1
    return {
        "mean": float(shift.square().mean().sqrt()),
        "bias": float(ratio.mean()),
        "variance": float(ratio.square().mean().sqrt()),
    }


def unnormalized(
    network: nn.Module, draw: Callable[[int], Tensor], batches: int = 60
) -> list[dict[str, float]]:
    """Errors of the input of each ReLU: moments run through the whole network."""
    start(network)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.ReLU)]
    calls = trace(network, draw(2))
    like = torch.empty(0)
    found = [build_propagation(calls, n, network, (0.0,), (1.0,))(like) for n in names]
    data = measured(network, names, draw, batches)
    return [errors(*pair) for pair in zip(found, data, strict=True)]


def normalized(
    network: nn.Module,
    draw: Callable[[int], Tensor],
    batches: int,
    normalizer: Analytic | None = None,
) -> list[dict[str, float]]:
    """Errors of the input of each normalization: moments begin anew at each."""
    new = convert(network, normalizer or Analytic(), example_input=draw(2)).eval()
    layers = {n: m for n, m in new.named_modules() if isinstance(m, LatentNorm)}
    found = [layer.propagation(torch.empty(0)) for layer in layers.values()]
    data = measured(new, list(layers), draw, batches)
    return [errors(*pair) for pair in zip(found, data, strict=True)]


def nothing() -> Sequence[nn.Module]:
    """Nothing between layers but ReLU."""
    return ()


def pool(kind: Callable[[int], nn.Module]) -> Callable[[], Sequence[nn.Module]]:
    """Pooling of 2 x 2 positions between layers."""
    return lambda: (kind(2),)


def trained_digits() -> tuple[nn.Module, torch.Tensor]:
    """The network of the digits study, trained with batch normalization, and its data."""
    x, y = pn.datasets.load_digits().train
    network = pn.networks.SmallConvNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(300):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return network, x


def cases() -> dict[str, list[dict[str, float]]]:
    """Errors by case and layer."""
    mlp = [nn.Linear(a, b) for a, b in pairwise((64, 256, 256, 256, 256))]
    wide = [nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 7), nn.Conv2d(64, 64, 3)]
    image = white(16, 14, 14)
    result = {
        "MLP, width 256": unnormalized(chain(mlp, nothing), white(64), 200),
        "1d, width 64": unnormalized(chain(convs(1, 64, 16, 4), nothing), white(16, 40)),
        "2d, width 64": unnormalized(chain(convs(2, 64, 16, 4), nothing), image),
        "3d, width 32": unnormalized(chain(convs(3, 32, 16, 3), nothing), white(16, 9, 9, 9), 30),
        "2d, width 16, 3 inputs": unnormalized(
            chain(convs(2, 16, 3, 4), nothing), white(3, 14, 14)
        ),
        "2d, concatenation": unnormalized(Dense(32, 16, 4), white(16, 32, 32), 15),
        "2d, residual sums": unnormalized(Residual(64, 16, 4), white(16, 34, 34), 15),
        "2d, average pooling": unnormalized(
            chain(convs(2, 64, 16, 3), pool(nn.AvgPool2d)), white(16, 34, 34), 40
        ),
        "2d, average pooling, 7 x 7 kernel": unnormalized(
            nn.Sequential(
                *(wide[0], nn.ReLU(), nn.AvgPool2d(2), wide[1], nn.ReLU(), wide[2], nn.ReLU())
            ),
            white(16, 26, 26),
            40,
        ),
        "2d, max pooling": unnormalized(
            chain(convs(2, 64, 16, 3), pool(nn.MaxPool2d)), white(16, 34, 34), 40
        ),
        "2d, zero padding, 8 x 8": unnormalized(
            chain(convs(2, 64, 16, 4, padding=1), nothing), white(16, 8, 8)
        ),
        "2d, zero padding, 32 x 32": unnormalized(
            chain(convs(2, 64, 16, 4, padding=1), nothing), white(16, 32, 32), 20
        ),
        "2d, smooth input": unnormalized(chain(convs(2, 64, 16, 4), nothing), smooth(16, 14, 14)),
        "2d, smooth input, average pooling": unnormalized(
            chain(convs(2, 64, 16, 3), pool(nn.AvgPool2d)), smooth(16, 34, 34), 40
        ),
        "2d, smooth input, max pooling": unnormalized(
            chain(convs(2, 64, 16, 3), pool(nn.MaxPool2d)), smooth(16, 34, 34), 40
        ),
        "ResNet-20, normalized": normalized(ResNet20(16), white(3, 32, 32), 6),
        "ResNet-20, normalized, smooth input": normalized(ResNet20(16), smooth(3, 32, 32), 6),
    }
    network, x = trained_digits()
    draw = lambda count: x[torch.randint(len(x), (count,))]  # noqa: E731
    fresh = start(pn.networks.SmallConvNet())
    result["digits, normalized"] = normalized(fresh, draw, 60, Analytic.from_data(x))
    result["digits, normalized, trained"] = normalized(network, draw, 60, Analytic.from_data(x))
    return result


def main() -> None:
    torch.manual_seed(0)
    found = cases()
    for name, rows in found.items():
        print(f"\n{name}")
        for key in rows[0]:
            print(f"  {key:9s}", " ".join(f"{row[key]:7.3f}" for row in rows))
    rounded = {
        n: [{k: round(v, 4) for k, v in r.items()} for r in rows] for n, rows in found.items()
    }
    record("propagation", {"layers": rounded})


if __name__ == "__main__":
    main()
