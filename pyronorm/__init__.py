"""Normalization statistics as explicit latent variables in Pyro models.

The short of it::

    network = pn.convert(resnet)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=len(train))
    guide = pn.guides.MeanField(model)
    pn.fit(model, guide, train_loader, epochs=30)
    idata = pn.to_arviz(model, guide, test_data, num_samples=200)
"""

from pyronorm import (
    distributions,
    errors,
    guides,
    infer,
    latents,
    layers,
    likelihoods,
    priors,
    stats,
)
from pyronorm.infer import (
    collect_bank,
    estimate_population_statistics,
    fit,
    predict,
)
from pyronorm.latents import LatentNetwork, LatentSpace
from pyronorm.layers import convert, data_dependent_start, trust_statistics
from pyronorm.model import NormalizationModel, init_to_neutral, sample_latents

__version__ = "0.1.0"
