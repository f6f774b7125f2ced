"""Chains that are kept: gone on with bit by bit, given again, refused where they are others."""

from __future__ import annotations

import sys

import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyronorm as pn
from pyronorm.errors import FileError, OptionError
from pyronorm.infer.chain import digest
from pyronorm.infer.latent_nuts import LatentNUTS
from pyronorm.infer.leapfrog import Leapfrog
from pyronorm.latents import Draws
from pyronorm.randomness import seeded
from tests.infer.sampled import OPTIONS, model_and_data, same
from tests.infer.sampled import main as sampled
from tests.processes import kill_again_and_again, runs_in


def run(folder=None, **changes):
    model, data = model_and_data()
    return pn.run_nuts(model, data, **{**OPTIONS, "folder": folder, **changes})


def stopping_at(monkeypatch, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """The sampler is interrupted in the middle of a step, counted over all chains."""
    steps = 0
    sample, advance = LatentNUTS.sample, Leapfrog.__call__

    def counted(self, params):
        nonlocal steps
        steps += 1
        return sample(self, params)

    def stopped(self, *args):
        point = advance(self, *args)
        if steps == step:
            raise error
        return point

    monkeypatch.setattr(LatentNUTS, "sample", counted)
    monkeypatch.setattr(Leapfrog, "__call__", stopped)


def steps_made(monkeypatch) -> list[int]:
    made: list[int] = []
    sample = LatentNUTS.sample

    def counted(self, params):
        made.append(1)
        return sample(self, params)

    monkeypatch.setattr(LatentNUTS, "sample", counted)
    return made


@pytest.fixture(scope="module")
def whole():
    """A run that nothing interrupts."""
    return run()


def test_the_chains_are_those_of_pyro(whole):
    model, data = model_and_data()
    model.requires_grad_(False).eval()
    kernel = NUTS(model, init_strategy=pn.init_to_neutral, max_tree_depth=2, max_plate_nesting=1)
    mcmc = MCMC(kernel, OPTIONS["num_samples"], OPTIONS["warmup"], disable_progbar=True)
    with seeded(OPTIONS["seed"]):
        mcmc.run(*data)
    found = whole.shift[: OPTIONS["num_samples"]]
    torch.testing.assert_close(found, mcmc.get_samples()["shift"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"full_mass": True, "dtype": torch.float64}])
def test_a_folder_changes_nothing(tmp_path, options, whole):
    plain = run(**options) if options else whole
    kept = run(str(tmp_path / "new"), **options)
    assert same(plain, kept)
    assert same(run(str(tmp_path / "new"), **options), plain)
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {".lock", "chain-0.safetensors", "chain-1.safetensors"}


@pytest.mark.parametrize("step", [4, 20, 37, 50])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, monkeypatch, step, whole):
    """In a warm-up, at the end of one, among the draws: nothing is lost but a step."""
    with monkeypatch.context() as patch:
        stopping_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    torch.rand(3)  # what happened since then does not matter
    made = steps_made(monkeypatch)
    assert same(run(tmp_path), whole)
    per_chain = OPTIONS["warmup"] + OPTIONS["num_samples"]
    begun = (step - 1) % per_chain  # whole steps of the chain at work
    kept = step - 1 if begun >= OPTIONS["warmup"] else step - 1 - begun
    assert len(made) == 2 * per_chain - kept


def test_a_finished_run_gives_its_draws_again_and_goes_on(tmp_path, monkeypatch, whole):
    first = run(tmp_path, num_samples=9)
    made = steps_made(monkeypatch)
    assert same(run(tmp_path, num_samples=9), first)
    assert made == []
    few = run(tmp_path, num_samples=7)
    assert torch.equal(few.shift[:7], first.shift[:7])
    assert len(few.stats["diverging"]) == 14
    assert made == []
    assert same(run(tmp_path), whole)
    assert len(made) == 2 * (OPTIONS["num_samples"] - 9)


def test_one_process_at_a_time(tmp_path):
    from pyronorm.files import only_run

    with only_run(tmp_path, "test"), pytest.raises(OptionError, match="another run works in"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"warmup": 13}, "warmup is 6 there and 13 here"),
        ({"target_accept": 0.9}, "target_accept is 0.8 there and 0.9 here"),
        ({"max_tree_depth": 3}, "max_tree_depth is 2 there and 3 here"),
    ],
)
def test_chains_of_another_run_are_refused(tmp_path, changes, message):
    run(tmp_path, num_samples=4, num_chains=1)
    with pytest.raises(OptionError, match=message):
        run(tmp_path, num_samples=4, num_chains=1, **changes)


def test_chains_of_other_data_or_weights_are_refused(tmp_path):
    few = {**OPTIONS, "num_samples": 4, "num_chains": 1, "folder": tmp_path}
    model, (x, y) = model_and_data()
    pn.run_nuts(model, (x, y), **few)
    with pytest.raises(OptionError, match="data is '.*' there and"):
        pn.run_nuts(model, (x * 1.01, y), **few)
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.01)
    pn.estimate_population_statistics(model, x)
    with pytest.raises(OptionError, match="network is '.*' there and"):
        pn.run_nuts(model, (x, y), **few)
    other, _ = model_and_data(pn.priors.Standard(0.3, 0.4))
    with pytest.raises(OptionError, match="prior is .BatchNoise .* there and"):
        pn.run_nuts(other, (x, y), **few)


def test_a_seed_is_needed(tmp_path):
    with pytest.raises(OptionError, match="chains in a folder need a seed"):
        run(tmp_path, seed=None)


@pytest.mark.parametrize("how", ["empty", "truncated", "one bit"])
def test_a_damaged_chain_is_named_with_the_remedy(tmp_path, how):
    few = {"num_samples": 4, "num_chains": 1}
    first = run(tmp_path, **few)
    file = tmp_path / "chain-0.safetensors"
    content = file.read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes({"empty": b"", "truncated": content[:middle], "one bit": changed}[how])
    with pytest.raises(FileError, match=r"chain-0.safetensors.*delete it: the chain is then"):
        run(tmp_path, **few)
    file.unlink()
    assert same(run(tmp_path, **few), first)


# without a folder


@pytest.mark.parametrize(("step", "chains", "length"), [(20, 1, 13), (40, 1, 24), (55, 2, 18)])
def test_an_interruption_gives_the_draws_so_far(monkeypatch, step, chains, length, whole):
    """Interrupted among the draws of the first chain, and early and late in the second."""
    with monkeypatch.context() as patch:
        stopping_at(patch, step)
        with pytest.warns(UserWarning, match=rf"interrupted. Chains have .* {chains} of {length}"):
            found = run()
    assert (found.num_chains, len(found)) == (chains, chains * length)
    assert len(found.stats["diverging"]) == len(found)
    number = OPTIONS["num_samples"]
    for chain in range(chains):
        mine = found.shift[chain * length : (chain + 1) * length]
        torch.testing.assert_close(mine, whole.shift[chain * number : chain * number + length])


def test_an_interruption_before_any_draw_goes_through(monkeypatch):
    stopping_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run()


def test_weights_and_modes_are_as_before_after_an_interruption(monkeypatch):
    model, data = model_and_data()
    model.train()
    state = torch.get_rng_state()
    stopping_at(monkeypatch, 20)
    with pytest.warns(UserWarning, match="interrupted"):
        pn.run_nuts(model, data, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_digests():
    a = torch.arange(4.0)
    assert digest([a]) == digest([a.clone()])
    others = [[a + 1e-6], [a.view(2, 2)], [a.double()], [a, a], [a.flip(0)], [torch.tensor(1.0)]]
    assert len({digest(x) for x in [[a], *others]}) == 1 + len(others)
    assert digest([a.bfloat16()]) != digest([a.half()])
    assert digest([torch.empty(0)]) != digest([])


# killed


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "tests.infer.sampled", str(folder), str(out), "0.08"]
    assert kill_again_and_again(command, runs_in(folder), 3.0) >= 10
    sampled(None, tmp_path / "whole.safetensors")
    expected, found = (Draws.load(tmp_path / f"{name}.safetensors") for name in ("whole", "out"))
    assert same(expected, found)
