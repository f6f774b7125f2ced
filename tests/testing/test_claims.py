from __future__ import annotations

import subprocess
import sys

import jaxtyping
import pytest
import torch
from torch import nn

from pyronorm.normalizers import Group
from pyronorm.testing import NormalizerConformance, run_checks
from pyronorm.testing.claims import SkipTest, Snapshot, check, same, without_type_checks


class Three:
    """A suite of its own, to see how results are reported."""

    @check
    def test_a(self):
        """Draws are the same in every run."""
        self.drawn = torch.randn(2)

    @check
    def test_b(self):
        """Does not apply."""
        raise SkipTest("no reason")


def test_run_checks_reports_what_passed_and_what_was_skipped():
    assert run_checks(Three()) == {"test_a": "passed", "test_b": "skipped: no reason"}


def test_run_checks_names_everything_that_failed():
    class Bad(Three):
        @check
        def test_c(self):
            """One is two."""
            same(torch.ones(2), torch.tensor([1.0, 2.0]), "one is not two")

        @check
        def test_d(self):
            """Lists have keys.

            And more.
            """
            [].keys()

    with pytest.raises(AssertionError) as caught:
        run_checks(Bad())
    assert str(caught.value).splitlines() == [
        "Bad: 2 checks failed.",
        "test_c: one is not two: 1 instead of 2 at (1,)",
        "test_d: Lists have keys. Instead it raised AttributeError: 'list' object has no attribute "
        "'keys'",
    ]


def test_a_check_is_reproducible_and_leaves_the_generator_alone():
    suite = Three()
    torch.manual_seed(7)
    suite.test_a()
    first, after = suite.drawn, torch.randn(3)
    torch.manual_seed(7)
    assert torch.equal(torch.randn(3), after)
    suite.test_a()
    assert torch.equal(suite.drawn, first)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (torch.zeros(2, 3), r"x: shape \(2, 3\) instead of \(3,\)"),
        (torch.zeros(3, dtype=torch.double), r"x: torch.float64 instead of torch.float32"),
        (torch.tensor([0.0, torch.nan, 0.0]), r"x: nan instead of 0 at \(1,\)"),
        (torch.tensor([0.0, 0.0, 1e-3]), r"x: 0.001 instead of 0 at \(2,\)"),
    ],
)
def test_same_says_what_differs(actual, message):
    same(torch.full((3,), 1e-5), torch.zeros(3), "x", tolerance=1e-4)
    with pytest.raises(AssertionError, match=message):
        same(actual, torch.zeros(3), "x", tolerance=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.running_mean.add_(1), "it wrote running_mean: running a model"),
        (lambda m: m.weight.data.mul_(2), "it wrote weight"),
        (lambda m: setattr(m, "eps", 0.1), "it wrote .eps"),
        (lambda m: setattr(m, "cache", 0.1), "it left a new attribute .cache"),
        (lambda m: delattr(m, "eps"), "it wrote .eps"),
        (lambda m: m.register_forward_hook(print), r"it left a new attribute ._forward_hooks\["),
        (lambda m: m.register_buffer("x", torch.ones(1), persistent=False), "._buffers"),
    ],
)
def test_a_snapshot_sees_every_change(change, message):
    module = nn.BatchNorm1d(3)
    snapshot = Snapshot(module)
    snapshot.expect_unchanged("nothing")
    change(module)
    with pytest.raises(AssertionError, match=message):
        snapshot.expect_unchanged("it")


def test_type_checks_are_switched_on_again():
    before = jaxtyping.config.jaxtyping_disable
    with pytest.raises(KeyError), without_type_checks():
        assert jaxtyping.config.jaxtyping_disable
        raise KeyError
    assert jaxtyping.config.jaxtyping_disable == before


def test_importing_needs_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; import pyronorm.testing"
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_the_suite_works_in_unittest():
    import unittest

    class GroupCase(NormalizerConformance, unittest.TestCase):
        independent_channels = False

        def make(self, num_channels):
            return Group(2)

    names = ("test_neutral_latents_are_no_latents", "test_equals_torch")
    result = unittest.TestResult()
    unittest.TestSuite(map(GroupCase, names)).run(result)
    assert (result.testsRun, len(result.skipped)) == (2, 1)
    assert result.wasSuccessful()
