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
