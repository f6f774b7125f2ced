"""Likelihoods: how the network's output becomes a distribution of the data."""

from pyronorm.likelihoods.base import Likelihood, per_example
from pyronorm.likelihoods.bernoulli import Bernoulli
from pyronorm.likelihoods.categorical import Categorical
from pyronorm.likelihoods.function import Function
from pyronorm.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from pyronorm.likelihoods.intervals import Intervals
from pyronorm.likelihoods.multivariate_normal import MultivariateNormal
from pyronorm.likelihoods.negative_binomial import NegativeBinomial
from pyronorm.likelihoods.normal import Normal
from pyronorm.likelihoods.ordinal import Ordinal
from pyronorm.likelihoods.poisson import Poisson
from pyronorm.likelihoods.prediction import Prediction
from pyronorm.likelihoods.scores import Scores
from pyronorm.likelihoods.student_t import StudentT
from pyronorm.likelihoods.tempered import Tempered

__all__ = [
    "Bernoulli",
    "Categorical",
    "Function",
    "HeteroscedasticNormal",
    "Intervals",
    "Likelihood",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "Prediction",
    "Scores",
    "StudentT",
    "Tempered",
    "per_example",
]
