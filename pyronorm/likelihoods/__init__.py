"""Likelihoods: how the network's output becomes a distribution of the data."""

from pyronorm.likelihoods.base import Likelihood, per_example
from pyronorm.likelihoods.bernoulli import Bernoulli
from pyronorm.likelihoods.categorical import Categorical
from pyronorm.likelihoods.function import Function
from pyronorm.likelihoods.normal import Normal
from pyronorm.likelihoods.prediction import Prediction

__all__ = [
    "Bernoulli",
    "Categorical",
    "Function",
    "Likelihood",
    "Normal",
    "Prediction",
    "per_example",
]
