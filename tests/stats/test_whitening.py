"""Oracles: scipy's matrix square root, the recursion as published, numpy's covariance, gradcheck."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from pyronorm.errors import OptionError
from pyronorm.stats import Eigen, InverseRoot, Newton, centre_and_covary

SOLVERS = [Newton(4), Eigen()]


def covariance(*batch, dim=5, condition=100.0, dtype=torch.float64, scale=3.0):
    """Random covariances with eigenvalues from scale down to scale / condition."""
    vectors, _ = torch.linalg.qr(torch.randn(*batch, dim, dim, dtype=dtype))
    values = scale * torch.logspace(0, -math.log10(condition), dim, dtype=dtype)
    return vectors * values @ vectors.mT


def symmetric(matrix):
    return (matrix + matrix.mT) / 2


def published(cov, iterations):
    """The recursion of IterNorm as in the paper."""
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    p = torch.eye(cov.shape[-1], dtype=cov.dtype)
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ (cov / trace)) / 2
    return p / trace.sqrt()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_eigen_is_the_inverse_square_root(dtype, condition):
    cov = covariance(2, 3, condition=condition)
    expected = [np.linalg.inv(scipy.linalg.sqrtm(c.numpy())).real for c in cov.flatten(0, 1)]
    root = Eigen()(cov.to(dtype))
    assert root.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(
        root.double().flatten(0, 1), torch.tensor(np.stack(expected)), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("iterations", [1, 2, 5, 7])
def test_newton_is_the_published_recursion(iterations):
    cov = covariance(2, 3, dim=4, condition=30)
    torch.testing.assert_close(
        Newton(iterations)(cov), published(cov, iterations), rtol=1e-9, atol=1e-9
    )


def test_newton_keeps_its_digits_where_the_published_recursion_loses_them():
    cov = covariance(dim=8, condition=100)
    exact = Eigen()(cov)

    def error(root):
        return float((root.double() - exact).abs().max() / exact.abs().max())

    assert error(Newton(15)(cov.float())) < 1e-5
    assert not error(published(cov.float(), 15)) < 1


def test_newton_whitens_as_far_as_its_docstring_says():
    cov = covariance(dim=6, condition=1000)
    values, vectors = torch.linalg.eigh(cov)
    expected = values / values.sum()
    for iterations in range(1, 8):
        expected = expected * (3 - expected) ** 2 / 4
        root = Newton(iterations)(cov)
        whitened = vectors.mT @ root @ cov @ root @ vectors
        torch.testing.assert_close(whitened, expected.diag(), rtol=1e-8, atol=1e-10)
        assert expected.max() <= 1 + 1e-12
    for fraction, after_five in ((1 / 16, 0.97), (1 / 64, 0.59), (1 / 1000, 0.06)):
        cov = torch.tensor([[fraction, 0], [0, 1 - fraction]], dtype=torch.float64)
        root = Newton(5)(cov)
        assert (root @ cov @ root)[0, 0] == pytest.approx(after_five, abs=0.005)


@pytest.mark.parametrize(
    ("dim", "condition", "least"), [(4, 1, 0.999), (4, 10, 0.95), (16, 1, 0.96), (16, 10, 0.58)]
)
def test_five_newton_steps(dim, condition, least):
    """How close to 1 the whitened variances are, by size and condition number."""
    cov = covariance(7, dim=dim, condition=condition)
    root = Newton(5)(cov)
    variances = torch.linalg.eigvalsh(root @ cov @ root)
    assert variances.max() < 1 + 1e-12
    assert least < variances.min() < least + 0.01


# torch's forward mode warns of itself.
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("condition", [1.0, 50.0], ids=["equal eigenvalues", "unequal"])
def test_derivatives(solver, condition):
    cov = covariance(2, dim=3, condition=condition).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: solver(symmetric(c)), cov, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        lambda c: solver(symmetric(c)), cov, check_fwd_over_rev=True
    )


def test_plain_eigenvectors_have_no_derivative_at_equal_eigenvalues():
    """What the closed form is there for."""
    cov = torch.eye(3, dtype=torch.float64).mul(2).requires_grad_()
    values, vectors = torch.linalg.eigh(cov)
    root = vectors / values.sqrt() @ vectors.mT
    (naive,) = torch.autograd.grad(root[0, 1], cov)
    (closed,) = torch.autograd.grad(Eigen()(cov)[0, 1], cov)
    assert not naive.isfinite().all()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 1] = -0.5 * 2**-1.5  # the derivative of v^(-1/2)
    torch.testing.assert_close(closed, expected)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_vmap_equals_a_loop(solver):
    cov = covariance(4, 2, dim=3)

    def value(c):
        return solver(c).pow(3).sum()

    def together(function):
        return torch.func.vmap(function)(cov)

    def loop(function):
        return torch.stack([function(c) for c in cov])

    torch.testing.assert_close(together(solver), loop(solver))
    first = torch.func.grad(value)
    torch.testing.assert_close(together(first), loop(first))
    second = torch.func.grad(lambda c: first(c).pow(2).sum())
    torch.testing.assert_close(together(second), loop(second))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_deficient_covariances_stay_finite(solver):
    rows = torch.randn(3, 8) * 100  # 3 vectors in 8 dimensions
    cov = (rows.mT @ rows + 1e-5 * torch.eye(8)).requires_grad_()
    root = solver(cov)
    root.sum().backward()
    assert root.isfinite().all()
    assert cov.grad.isfinite().all()


def test_at_least_one_step():
    with pytest.raises(OptionError, match="iterations must be at least 1, an integer, got 0"):
        Newton(0)


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        InverseRoot()


def test_covariance_is_that_of_numpy():
    rows = torch.randn(7, 2, 3, 5, dtype=torch.float64) * 2 + 30
    rows[:, 1, 2] += rows[:, 1, 0]
    centred, mean, cov = centre_and_covary(rows)
    flat = rows.permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(mean, flat.mean(2))
    for group in range(2):
        expected = torch.tensor(np.cov(flat[group].numpy(), bias=True))
        torch.testing.assert_close(cov[group], expected)
    torch.testing.assert_close(centred, rows - flat.mean(2)[..., None])


def test_float32_covariance_far_from_zero_keeps_its_digits():
    rows = torch.randn(4, 1, 3, 500) + 1e3
    cov = centre_and_covary(rows)[2]
    torch.testing.assert_close(cov.double(), centre_and_covary(rows.double())[2], rtol=0, atol=1e-5)


def test_covariance_has_derivatives():
    rows = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(centre_and_covary, rows)
    assert torch.autograd.gradgradcheck(centre_and_covary, rows)
