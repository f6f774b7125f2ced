"""Oracle: Pyro's sampler, from the same numbers of the generator, in double precision."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import MCMC

import pyronorm as pn
from pyronorm.infer import RecordedNUTS
from pyronorm.infer.latent_nuts import LatentNUTS
from pyronorm.priors import Standard
from pyronorm.randomness import seeded
from tests.guides.conjugate import Conjugate


@pytest.mark.parametrize("full_mass", [False, True])
def test_chains_are_pyros_up_to_rounding(full_mass: bool):
    """The same trees, adaptation and statistics; a second chain of the kernel as well."""
    problem = Conjugate(Standard(0.7, 0.6), num_data=12, std=2.0, offset=0.8)
    found = {}
    for kind in (RecordedNUTS, LatentNUTS):
        kernel = kind(problem.model, init_strategy=pn.init_to_neutral, full_mass=full_mass)
        for seed in (5, 6):
            kernel.potential_fn = None  # MCMC takes a kernel a second time for one of a function
            mcmc = MCMC(kernel, 12, 24, disable_progbar=True)
            with seeded(seed):
                mcmc.run(problem.x, problem.y)
            found[kind, seed] = mcmc
    for seed in (5, 6):
        theirs, mine = found[RecordedNUTS, seed], found[LatentNUTS, seed]
        for name, value in theirs.get_samples().items():
            torch.testing.assert_close(mine.get_samples()[name], value, rtol=1e-6, atol=1e-6)
        assert theirs.get_samples()["shift"].std() > 0
        expected, said = theirs.diagnostics(), mine.diagnostics()
        assert said["divergences"] == expected["divergences"]
        for name in ("energy", "tree_depth", "acceptance_rate"):
            assert said[name]["chain 0"] == pytest.approx(expected[name]["chain 0"], rel=1e-6)
        assert said["acceptance rate"] == expected["acceptance rate"]


def test_a_divergence_is_noted():
    """Steps of 40 standard deviations leave the energy at once."""
    problem = Conjugate(Standard(0.7, 0.6), num_data=12, std=0.01)
    found = []
    for kind in (RecordedNUTS, LatentNUTS):
        kernel = kind(
            problem.model,
            init_strategy=pn.init_to_neutral,
            step_size=1.0,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        mcmc = MCMC(kernel, 5, 0, disable_progbar=True)
        with seeded(1):
            mcmc.run(problem.x, problem.y)
        found.append(mcmc.diagnostics()["divergences"]["chain 0"])
    assert found[0] == found[1] != []
