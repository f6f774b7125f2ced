"""Latent normalization inside a Pyro model of your own: a variational autoencoder.

The decoder's normalization statistics are global latents beside the local code of each image. Run
with ``python examples/own_pyro_model.py`` (about 20 seconds on two cores).
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyronorm as pn

CODE = 8
torch.manual_seed(0)
pyro.clear_param_store()


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """A hidden layer with batch normalization."""
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, outputs)
    )


encoder = mlp(64, 2 * CODE)
decoder = pn.LatentNetwork(pn.convert(mlp(CODE, 64)), prefix="decoder.")
prior = pn.priors.BatchNoise(batch_size=64)
posterior = pn.guides.MeanField.from_batch_size(decoder, 64)
images = pn.datasets.load("digits").train.x.flatten(1)


def model(x: Tensor, num_data: int) -> None:
    """Global statistics of the decoder, a local code, Bernoulli pixels."""
    pyro.module("decoder", decoder)
    shift, scale = pn.sample_latents(decoder, prior)
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=num_data / len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), CODE), 1.0).to_event(1))
        logits = decoder(z, shift, scale)
        pixels = dist.Bernoulli(logits=logits, validate_args=False)  # grey values in [0, 1]
        pyro.sample("x", pixels.to_event(1), obs=x)


def guide(x: Tensor, num_data: int) -> None:
    """The decoder's statistics from a guide of the library, the code from the encoder."""
    pyro.module("encoder", encoder)
    posterior()
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=num_data / len(x)):
        loc, log_std = encoder(x).chunk(2, dim=-1)
        pyro.sample("z", dist.Normal(loc, log_std.exp()).to_event(1))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
for _ in range(40):
    order = torch.randperm(len(images)).split(64)
    loss = sum(svi.step(images[batch], len(images)) for batch in order)
print(f"-ELBO per image {loss / len(order) / len(images):.2f}")

# Prediction wants population statistics: of the encoder for images, of the decoder for codes.
encoder.eval()
with torch.no_grad():
    codes = encoder(images)[:, :CODE]
pn.estimate_population_statistics(decoder, codes)
decoder.eval()

idata = pn.to_arviz(model, guide, (images[:50], len(images)), num_samples=100, seed=0)
print("sites:", {name: value.dims for name, value in idata["posterior"].data_vars.items()})
