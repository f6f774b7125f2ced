"""The suite passes the library's likelihoods, and names what is wrong with others."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyronorm import likelihoods
from pyronorm.testing import LikelihoodConformance, run_checks
from tests.testing import broken_likelihoods as broken

SHIPPED = {
    "bernoulli": (likelihoods.Bernoulli, (2,)),
    "categorical": (likelihoods.Categorical, (3,)),
    "categorical, dense": (
        lambda: likelihoods.Categorical(ignore_index=255, weight=torch.tensor([1.0, 2.0, 0.5])),
        (3, 2, 2),
    ),
    "normal": (lambda: likelihoods.Normal(0.7, learned=True), ()),
    "heteroscedastic": (lambda: likelihoods.HeteroscedasticNormal(0.1), (2, 3)),
    "student": (lambda: likelihoods.StudentT(5.0, 0.5, learned=True), (2,)),
    "poisson": (likelihoods.Poisson, (2,)),
    "negative binomial": (lambda: likelihoods.NegativeBinomial(2.0, learned=True), (2,)),
    "multivariate": (
        lambda: likelihoods.MultivariateNormal(
            torch.tensor([0.5, 1.0]), torch.tensor([[1.0], [-0.4]]), learned=True
        ),
        (2,),
    ),
    "ordinal": (lambda: likelihoods.Ordinal(4, ignore_index=-1), (2,)),
    "function": (
        lambda: likelihoods.Likelihood.of(lambda output: dist.Gamma(2.0, output.exp())),
        (2,),
    ),
    "own": (broken.Right, (2,)),
}


def suite_of(make, out):
    class Suite(LikelihoodConformance):
        def make(self):
            return make()

    Suite.out = out
    return Suite()


@pytest.mark.parametrize(("make", "out"), SHIPPED.values(), ids=SHIPPED)
def test_the_librarys_own_pass(make, out):
    results = run_checks(suite_of(make, out))
    assert len(results) == 15
    skipped = {name for name, result in results.items() if result != "passed"}
    assert skipped <= {
        "test_infinite_data_are_refused",
        "test_missing_values_have_no_part",
        "test_settings_make_it_anew",
    }


FAILURES = [
    (
        broken.ForgetsEvents,
        "one_log_density_per_example",
        r"has batch shape \(5, 2\) instead of \(5,\): return pyronorm.likelihoods.per_example",
    ),
    (broken.MixesExamples, "examples_do_not_mix", "example 0 has another log density alone"),
    (broken.CountsAxesFromTheFront, "draws_do_not_mix", "with two sample axes in front is another"),
    (broken.Detached, "gradients", "does not depend on log_width"),
    (
        broken.SamplesSomethingElse,
        "samples_follow_the_density",
        "samples are not of the density: the mean of its slope over them is",
    ),
    (broken.OtherMean, "means_are_those_of_samples", "expected is not the mean of samples"),
    (
        broken.TakesAnyShape,
        "other_shapes_are_refused",
        r"y of shape \(5, 2, 1\) .* raised ValueError",
    ),
    (broken.TakesAnyShape, "infinite_data_are_refused", "infinite y was taken"),
    (broken.PoisonedByMissing, "missing_values_have_no_part", "missing, is not 0 for it"),
    (broken.AddsNoise, "running_changes_nothing", "drew from torch's generator"),
    (broken.Counts, "running_changes_nothing", "a call wrote calls"),
    (broken.HidesState, "precision_follows_the_output", "is a tensor of settings no buffer"),
]


@pytest.mark.parametrize(("make", "name", "message"), FAILURES)
def test_what_is_wrong_is_named(make, name, message):
    with pytest.raises(AssertionError, match=message):
        getattr(suite_of(make, (2,)), f"test_{name}")()


@pytest.mark.usefixtures("unchecked")
def test_no_likelihood():
    with pytest.raises(AssertionError, match="make returned a Normal, which is no Likelihood"):
        suite_of(lambda: dist.Normal(0.0, 1.0), ()).test_gradients()
