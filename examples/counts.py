"""Counts that scatter more than Poisson's: a negative binomial likelihood.

Run with ``python examples/counts.py`` (about 15 seconds on two cores).
"""

import pyro.distributions as dist
import torch
from torch import nn

import pyronorm as pn

torch.manual_seed(0)
x = torch.randn(500, 4)
rate = torch.exp(0.8 * x[:, 0] - 0.5 * x[:, 1] * x[:, 2] + 1.0)
y = dist.Poisson(rate * dist.Gamma(2.0, 2.0).sample((500,))).sample()
train, test = (x[:350], y[:350]), (x[350:], y[350:])


class Rate(nn.Module):
    """The logarithm of a rate for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 24), nn.LayerNorm(24), nn.Tanh(), nn.Linear(24, 24), nn.LayerNorm(24)
        )
        self.head = nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows ``(batch, 4)`` to ``(batch,)``."""
        return self.head(torch.tanh(self.body(x))).squeeze(-1)


for likelihood in (
    pn.likelihoods.Poisson(),
    pn.likelihoods.NegativeBinomial(1.0, learned=True),
):
    torch.manual_seed(1)
    name = type(likelihood).__name__
    model = pn.NormalizationModel(
        pn.convert(Rate()), likelihood, len(train[0]), pn.priors.BatchNoise(64)
    )
    guide = pn.guides.MeanField.from_batch_size(model, 64)
    pn.fit(model, guide, train, epochs=30, batch_size=50, lr=3e-3, seed=0, progress=False)
    metrics = pn.evaluate(model, guide, test, num_samples=64, seed=0)
    print(name, {key: round(value, 3) for key, value in metrics.items()})
    if name == "NegativeBinomial":
        prediction = pn.predict(model, guide, test[0][:3], num_samples=64, seed=0)
        levels = prediction.quantiles([0.05, 0.5, 0.95])
        print("counts", test[1][:3].tolist(), "quantiles .05, .5, .95", levels.T.tolist())
