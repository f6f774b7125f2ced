"""Likelihoods: how the network's output becomes a distribution of the data."""

from pyronorm.likelihoods.base import Likelihood, Summary
from pyronorm.likelihoods.bernoulli import Bernoulli
from pyronorm.likelihoods.categorical import Categorical
from pyronorm.likelihoods.normal import Normal

__all__ = ["Bernoulli", "Categorical", "Likelihood", "Normal", "Summary"]
