"""Conformance suites: what the parts of the library, and your own, have to hold."""

from pyronorm.testing.claims import run_checks
from pyronorm.testing.guide import GuideConformance
from pyronorm.testing.likelihood import LikelihoodConformance
from pyronorm.testing.posterior import PosteriorConformance
from pyronorm.testing.prior import PriorConformance
from pyronorm.testing.suite import NormalizerConformance

__all__ = [
    "GuideConformance",
    "LikelihoodConformance",
    "NormalizerConformance",
    "PosteriorConformance",
    "PriorConformance",
    "run_checks",
]
