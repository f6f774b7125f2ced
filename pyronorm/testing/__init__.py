"""A conformance suite for normalizers of the library and of your own."""

from pyronorm.testing.claims import run_checks
from pyronorm.testing.posterior import PosteriorConformance
from pyronorm.testing.suite import NormalizerConformance

__all__ = ["NormalizerConformance", "PosteriorConformance", "run_checks"]
