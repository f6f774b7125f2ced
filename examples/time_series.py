"""Forecasts with a recurrent network: a GRU with LayerNorm, and outliers in the data.

Run with ``python examples/time_series.py`` (about 20 seconds on two cores).
"""

import torch
from torch import Tensor, nn

import pyronorm as pn

torch.manual_seed(0)
WINDOW = 24

time = torch.arange(700.0)
series = torch.sin(time / 8) + 0.5 * torch.sin(time / 19) + 0.1 * torch.randn(700)
series[torch.rand(700) < 0.03] += 3.0  # a sensor that fails now and then
windows = series.unfold(0, WINDOW + 1, 1)
x, y = windows[:, :-1, None], windows[:, -1]
train, test = (x[:500], y[:500]), (x[530:], y[530:])


class Forecaster(nn.Module):
    """The next value from a window."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(1, 16), nn.LayerNorm(16))
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows ``(batch, time, 1)`` to forecasts ``(batch,)``."""
        state, _ = self.gru(self.lift(x))
        return self.head(self.norm(state[:, -1])).squeeze(-1)


for likelihood in (
    pn.likelihoods.Normal(0.3, learned=True),
    pn.likelihoods.StudentT(4.0, 0.3, learned=True),
):
    torch.manual_seed(1)
    network = pn.convert(Forecaster())
    model = pn.NormalizationModel(network, likelihood, len(train[0]), pn.priors.BatchNoise(64))
    guide = pn.guides.MeanField.from_batch_size(model, 64)
    pn.fit(model, guide, train, epochs=30, batch_size=50, lr=5e-3, seed=0, progress=False)
    prediction = pn.predict(model, guide, test[0], num_samples=32, seed=0)
    found = prediction.interval(0.9)
    nll = prediction.metrics(test[1])["nll"]
    inside, width = found.coverage(test[1]), (found.upper - found.lower).mean()
    name = type(likelihood).__name__
    print(f"{name:9s} nll {nll:6.3f}  90 % intervals: {inside:.2f} inside, width {width:.2f}")
