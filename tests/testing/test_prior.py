"""The suite for priors passes those of the library and names what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyro.distributions as dist
import pytest
import torch

from pyronorm.laws import Hierarchical, Independent
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, Prior, ScaleInvariant, Standard
from pyronorm.testing import PriorConformance, run_checks


def suite(prior):
    class Suite(PriorConformance):
        def make(self):
            return prior

    return Suite()


LIBRARY = [Standard(0.4, 0.3), BatchNoise(6.5), ScaleInvariant(), HierarchicalBatchNoise(16.0)]


@pytest.mark.parametrize("prior", LIBRARY, ids=lambda p: type(p).__name__)
def test_priors_of_the_library(prior):
    results = run_checks(suite(prior))
    passed = {name for name, result in results.items() if result == "passed"}
    assert len(results) == 8
    assert len(passed) >= 5
    assert ("test_hyperparameters_are_reported" in passed) == (prior is LIBRARY[-1])


@dataclass(frozen=True)
class Heavy(Prior):
    """Right: Student-t shifts and inverse-gamma scales."""

    df: float = 4.0

    def law(self, space, like):
        ones = like.new_ones(space.num_channels)
        shift = dist.StudentT(self.df * ones, 0 * ones, 0.3 * ones)
        return Independent(shift.to_event(1), self.scale(ones).to_event(1))

    def scale(self, ones):
        return dist.InverseGamma(5 * ones, 4 * ones)


def test_what_is_right_passes():
    results = run_checks(suite(Heavy()))
    assert {n for n, r in results.items() if r != "passed"} == {"test_hyperparameters_are_reported"}


class Mutable(Heavy):
    pass


@dataclass
class Melted(Prior):
    df: float = 4.0

    def law(self, space, like):
        return Heavy(self.df).law(space, like)


@dataclass(frozen=True)
class HoldsATensor(Prior):
    width: torch.Tensor

    def law(self, space, like):
        return Heavy().law(space, like)


class Negative(Heavy):
    def scale(self, ones):
        return dist.Normal(0 * ones, ones)


class WrongCount(Heavy):
    def law(self, space, like):
        ones = like.new_ones(9)
        return Independent(dist.Normal(0 * ones, ones).to_event(1), self.scale(ones).to_event(1))


class DefaultDtype(Heavy):
    def law(self, space, like):
        ones = torch.ones(space.num_channels, dtype=torch.double)
        return Independent(dist.Normal(0 * ones, ones).to_event(1), self.scale(ones).to_event(1))


class ReadsLike(Heavy):
    def scale(self, ones):
        return dist.InverseGamma(5 * ones, 4 * ones)

    def law(self, space, like):
        zeros = like.sum().expand(space.num_channels)
        return Independent(
            dist.Normal(zeros, 1 + 0 * zeros, validate_args=False).to_event(1),
            self.scale(like.new_ones(space.num_channels)).to_event(1),
        )


class Tilted(Heavy):
    """Its draws have one density and its log_prob another."""

    def log_prob(self, space, shift, scale, hyper):
        return super().log_prob(space, shift, scale, hyper) - 3 * scale.sum(-1)


class SaysImproper(Heavy):
    is_proper = False


class NoPrefix(Heavy):
    def law(self, space, like):
        hyper = {"df": dist.Gamma(like.new_ones(1) * 3, 1.0).to_event(1)}
        law = super().law(space, like)
        return Hierarchical(hyper, lambda values: law)


BROKEN = [
    (Melted(), "settings", "Melted is no frozen dataclass: its settings could change unseen"),
    (HoldsATensor(torch.ones(1)), "settings", r"settings\(\) are not ready for JSON: .* Tensor"),
    (Negative(), "channels", "every scale must be finite and above 0"),
    (WrongCount(), "shapes", "Instead it raised|log density has shape"),
    (WrongCount(), "channels", r"have shapes \(5, 9\) and \(5, 9\): take space\.num_channels"),
    (DefaultDtype(), "shapes", r"the log density is torch\.float64 for torch\.float32"),
    (ReadsLike(), "only_device", "the law depends on the values of like"),
    (Tilted(), "density", r"below the median, but .* of the density is: draws and density differ"),
    (SaysImproper(), "channels", "is_proper = False, but the prior has draws"),
    (NoPrefix(), "hyper", "the site 'df' lacks the prefix of the space"),
]


@pytest.mark.parametrize(("prior", "where", "message"), BROKEN, ids=lambda v: type(v).__name__)
def test_what_is_wrong_is_named(prior, where, message):
    subject = suite(prior)
    name = next(n for n in dir(subject) if n.startswith(f"test_{where}"))
    with pytest.raises(AssertionError) as error:
        getattr(subject, name)()
    assert re.search(message, str(error.value)), str(error.value)
