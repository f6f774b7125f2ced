"""Conformance suites: what normalizers, posteriors, likelihoods of the library and your own hold."""

from pyronorm.testing.claims import run_checks
from pyronorm.testing.likelihood import LikelihoodConformance
from pyronorm.testing.posterior import PosteriorConformance
from pyronorm.testing.suite import NormalizerConformance

__all__ = ["LikelihoodConformance", "NormalizerConformance", "PosteriorConformance", "run_checks"]
