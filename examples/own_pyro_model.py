"""Normalization latents inside a Pyro model of your own: a variational autoencoder, up to ArviZ."""

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyronorm as pn

CODE = 8
torch.manual_seed(0)
pyro.clear_param_store()


def mlp(inputs: int, outputs: int) -> nn.Module:
    """A hidden layer with batch normalization, converted."""
    hidden = (nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU())
    return pn.convert(nn.Sequential(*hidden, nn.Linear(64, outputs)))


images = pn.datasets.load("digits").train.x.flatten(1)
encoder = pn.LatentNetwork(mlp(64, 2 * CODE))  # without latents in a call: batch normalization
decoder = pn.LatentNetwork(mlp(CODE, 64), prefix="decoder.")
statistics = pn.guides.MeanField.from_batch_size(decoder, 64)


def model(x: Tensor) -> None:
    """Global statistics of the decoder, a local code, Bernoulli pixels."""
    pyro.module("decoder", decoder)
    shift, scale = pn.sample_latents(decoder, pn.priors.BatchNoise(64))
    with pyro.plate("image", len(x)), pyro.poutine.scale(scale=len(images) / len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=decoder(z, shift, scale), validate_args=False)  # greys
        pyro.sample("x", pixels.to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """The decoder's statistics from a guide of the library, the code from the encoder."""
    pyro.module("encoder", encoder)
    statistics()
    with pyro.plate("image", len(x)), pyro.poutine.scale(scale=len(images) / len(x)):
        loc, log_std = encoder(x).chunk(2, dim=-1)
        pyro.sample("z", dist.Normal(loc, log_std.exp()).to_event(1))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
for _ in range(40):
    loss = sum(svi.step(images[batch]) for batch in torch.randperm(len(images)).split(64))
print(f"-ELBO {loss:.4g}")

pn.estimate_population_statistics(encoder, images)  # of images, and of codes
pn.estimate_population_statistics(decoder.eval(), encoder.eval()(images)[:, :CODE].detach())
idata = pn.to_arviz(model, guide, (images[:50],), num_samples=100, seed=0)
print(az.summary(idata, var_names="decoder.scale", kind="stats").head())
print({name: value.dims for name, value in idata["posterior"].data_vars.items()})
