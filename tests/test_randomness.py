import pytest
import torch

from pyronorm.errors import OptionError
from pyronorm.randomness import seeded


def test_a_seed_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    with seeded(7):
        inside = torch.randn(4)
    assert torch.equal(torch.randn(4), expected)
    with seeded(7, torch.zeros(2), torch.device("cpu")):
        assert torch.equal(torch.randn(4), inside)
    with seeded(8):
        assert not torch.equal(torch.randn(4), inside)


def test_after_an_error_too():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(7):
        torch.randn(4)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_none_uses_the_generator_as_it_is():
    torch.manual_seed(3)
    expected = torch.randn(4), torch.randn(4)
    torch.manual_seed(3)
    with seeded(None):
        assert torch.equal(torch.randn(4), expected[0])
    assert torch.equal(torch.randn(4), expected[1])


def test_a_generator_moves_on_and_gives_the_same_numbers_again():
    draws = []
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        with seeded(generator):
            draws.append(torch.randn(4))
    assert not torch.equal(*draws)
    generator.manual_seed(5)
    with seeded(generator):
        assert torch.equal(torch.randn(4), draws[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_refuses_what_is_no_seed(seed):
    with pytest.raises(OptionError, match="seed: expected an integer"), seeded(seed):
        pass


def seeds():
    import pyronorm as pn
    from pyronorm import diagnostics
    from tests.guides.cases import make_bank, make_model

    model = make_model()
    x, y = torch.randn(32, 5), torch.randint(3, (32,))
    draws = torch.randn(20, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    bank = make_bank(model)
    guide = pn.guides.MeanField(model)
    exact = pn.NormalizationModel(model.network, model.likelihood, 32, pn.priors.Standard(0.1, 0.1))

    def calibrate(seed):
        found = diagnostics.simulation_based_calibration(
            exact, x, lambda x, y: pn.guides.MeanField(exact), 3, 9, seed=seed
        )
        return found.shift

    return {
        "fit": lambda seed: fit_copy(model, x, y, seed),
        "predict": lambda seed: pn.predict(model, guide, x, 3, seed=seed).mean,
        "to_arviz": lambda seed: torch.tensor(
            pn.to_arviz(model, guide, (x, y), 3, seed=seed)["posterior"]["shift"].values
        ),
        "collect_bank": lambda seed: (
            pn.collect_bank(model, x, num_batches=3, batch_size=8, seed=seed).mean
        ),
        "run_nuts": lambda seed: (
            pn.run_nuts(exact, (x, y), 4, 2, 1, max_tree_depth=2, seed=seed, progress=False).shift
        ),
        "prior.draws": lambda seed: exact.prior.draws(exact, 3, seed=seed).shift,
        "sliced_wasserstein": lambda seed: torch.tensor(
            diagnostics.sliced_wasserstein(*draws, 5, seed=seed)
        ),
        "moment_batch_sizes": lambda seed: (
            diagnostics.moment_batch_sizes(bank, seed=seed).layer_shift.low
        ),
        "calibration": calibrate,
    }


def fit_copy(model, x, y, seed):
    import copy

    import pyronorm as pn

    own = copy.deepcopy(model)
    own.num_data = len(x)
    guide = pn.guides.MeanField(own)
    pn.fit(own, guide, (x, y), epochs=1, batch_size=8, seed=seed, progress=False)
    return guide.shift_loc.detach()


NAMES = [
    "fit",
    "predict",
    "to_arviz",
    "collect_bank",
    "run_nuts",
    "prior.draws",
    "sliced_wasserstein",
    "moment_batch_sizes",
    "calibration",
]


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_draws_takes_a_seed_or_a_generator(name):
    """It repeats, differs between seeds, and leaves the user's generator as it was."""
    torch.manual_seed(11)
    draw = seeds()[name]
    before = torch.get_rng_state()
    first, second, other = draw(3), draw(3), draw(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    found = [draw(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), before)
