"""A hierarchical regression around a network with LayerNorm: schools, pupils, and an autoguide.

Run with ``python examples/hierarchical_regression.py`` (about 10 seconds on two cores).
"""

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyronorm as pn

torch.manual_seed(0)
pyro.clear_param_store()
SCHOOLS, PUPILS = 8, 240

school = torch.arange(PUPILS) % SCHOOLS
x = torch.randn(PUPILS, 3)
truth = torch.randn(SCHOOLS)
y = torch.sin(x[:, 0]) + x[:, 1] * x[:, 2] + truth[school] + 0.3 * torch.randn(PUPILS)

body = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
network = pn.LatentNetwork(pn.convert(body))


def model(x: Tensor, school: Tensor, y: Tensor | None = None) -> Tensor:
    """Offsets of schools share a mean and a spread; the network is common to all."""
    pyro.module("network", network)
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    with pyro.plate("school", SCHOOLS):
        offset = pyro.sample("offset", dist.Normal(mean, spread))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    shift, scale = pn.sample_latents(network, pn.priors.BatchNoise(64))
    with pyro.plate("pupil", len(x)):
        location = network(x, shift, scale).squeeze(-1) + offset[..., school]
        return pyro.sample("y", dist.Normal(location, noise), obs=y)


guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral, init_scale=0.05)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
for step in range(1, 801):
    loss = svi.step(x, school, y)
    if step % 200 == 0:
        print(f"step {step}  -ELBO {loss:.1f}")

idata = pn.to_arviz(model, guide, (x, school, y), num_samples=300, seed=0)
print(az.summary(idata, var_names=["mean", "spread", "noise"], kind="stats"))
found = torch.tensor(idata["posterior"]["offset"].mean(("chain", "draw")).values)
print(f"correlation with the true offsets {torch.corrcoef(torch.stack([found, truth]))[0, 1]:.2f}")
