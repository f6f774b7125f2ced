"""Regression whose noise depends on the input: two outputs, mean and spread.

Run with ``python examples/heteroscedastic.py`` (about 10 seconds on two cores).
"""

import torch
from torch import nn

import pyronorm as pn

torch.manual_seed(0)
x = torch.rand(600, 1) * 4 - 2
spread = 0.05 + 0.3 * (x > 0).float()
y = (torch.sin(2 * x) + spread * torch.randn(600, 1)).squeeze(1)
train, test = (x[:400], y[:400]), (x[400:], y[400:])


def mlp(outputs: int) -> nn.Sequential:
    """Two hidden layers with layer normalization."""
    hidden = [nn.Linear(1, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 32), nn.LayerNorm(32)]
    last = nn.Linear(32, outputs) if outputs > 1 else nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))
    return nn.Sequential(*hidden, nn.Tanh(), last)


cases = {
    "one noise": (mlp(1), pn.likelihoods.Normal(0.3, learned=True)),
    "noise by input": (mlp(2), pn.likelihoods.HeteroscedasticNormal(min_std=0.01)),
}
for name, (network, likelihood) in cases.items():
    model = pn.NormalizationModel(
        pn.convert(network), likelihood, len(train[0]), pn.priors.BatchNoise(64)
    )
    guide = pn.guides.MeanField.from_batch_size(model, 64)
    pn.fit(model, guide, train, epochs=100, batch_size=50, lr=3e-3, seed=0, progress=False)
    metrics = pn.evaluate(model, guide, test, num_samples=64, seed=0)
    points = torch.tensor([[-1.0], [1.0]])
    std = pn.predict(model, guide, points, 64, seed=0).variance.sqrt().flatten()
    print(
        f"{name:15s} nll {metrics['nll']:6.3f}  sd at -1: {std[0]:.2f} (.05)  at 1: {std[1]:.2f} (.35)"
    )
