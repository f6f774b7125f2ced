"""The short of it: convert a network, train a posterior over its statistics, look at it with ArviZ.

Run with ``python examples/quickstart.py`` (about 20 seconds on two cores).
"""

from __future__ import annotations

import arviz as az
import torch

import pyronorm as pn

torch.manual_seed(0)
data = pn.datasets.load("digits")
train, test = tuple(data.train), tuple(data.test)

# An ordinary network with batch normalization, and a copy whose layers have latent statistics.
network = pn.convert(pn.networks.SmallConvNet(num_classes=10))
print(network)

# 1. What everybody does: batch normalization, the latents at their neutral values.
prior = pn.priors.BatchNoise(batch_size=1024)
model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), len(train[1]), prior)
point = pn.guides.Point(model)
pn.fit(model, point, train, epochs=10, batch_size=64, lr=5e-3)

# 2. The noise it had by accident, as a posterior: Monte-Carlo batch normalization.
bank = pn.collect_bank(model, train, num_batches=64, batch_size=64)
implicit = pn.guides.MonteCarloBatchNorm(model, bank)

# 3. A learned posterior over the same latents, the network left as it is.
explicit = pn.guides.MeanField.from_batch_size(model, 1024)
pn.fit(model, explicit, train, epochs=10, batch_size=64, train_network=False)

for name, guide in {"point": point, "implicit": implicit, "explicit": explicit}.items():
    metrics = pn.evaluate(model, guide, test, num_samples=32)
    print(f"{name:10s}", "  ".join(f"{key} {value:.3f}" for key, value in metrics.items()))

# Everything else is ArviZ.
idata = pn.to_arviz(model, explicit, train, num_samples=200, seed=0)
print(az.summary(idata, var_names=["scale"], coords=pn.channels(idata, layer="bn1")))
print(pn.diagnostics.loo(idata))
