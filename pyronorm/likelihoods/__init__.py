"""Likelihoods: how the network's output becomes a distribution of the data."""

from pyronorm.likelihoods.base import Likelihood, per_example
from pyronorm.likelihoods.bernoulli import Bernoulli
from pyronorm.likelihoods.categorical import Categorical
from pyronorm.likelihoods.function import Function
from pyronorm.likelihoods.intervals import Intervals
from pyronorm.likelihoods.normal import Normal
from pyronorm.likelihoods.prediction import Prediction
from pyronorm.likelihoods.scores import Scores

__all__ = [
    "Bernoulli",
    "Categorical",
    "Function",
    "Intervals",
    "Likelihood",
    "Normal",
    "Prediction",
    "Scores",
    "per_example",
]
