"""Two processes on gloo against one: a program runs all cases of ``together.py`` twice over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

import pyronorm as pn
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.processes import Processes
from pyronorm.infer.shares import Share
from tests.infer.together import CASES, data, make, recorded, run_cases

SECONDS = 240  # two processes that wait for each other are ended then

Found = tuple[dict[str, Any], dict[str, Any]]


def run_two(folder: Path) -> Found:
    """All cases in two processes."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.infer.together"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(2)]
    running = [
        subprocess.Popen(
            [*program, str(rank), str(folder)], stdout=log, stderr=log, env=environment
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(SECONDS) for process in running]
    except subprocess.TimeoutExpired:
        codes = ["waits for the other"]
    finally:
        for process in running:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    if codes != [0, 0]:
        tails = [(folder / f"{rank}.log").read_text()[-1500:] for rank in range(2)]
        pytest.fail(f"{codes}: " + "\n----\n".join(tails))
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Found:
    """What each of two processes found, run once for all workers of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "together"
    with FileLock(f"{folder}.lock"):
        if (folder / "1.pt").exists():
            first, second = (torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2))
            return first, second
        folder.mkdir(exist_ok=True)
        return run_two(folder)


@pytest.fixture
def one(tmp_path):
    """A function: what one process finds in a case."""
    fabric = Fabric(accelerator="cpu", devices=1)
    return lambda name: run_cases(fabric, tmp_path, [name])[name]


def same(found, expected, **tolerance) -> None:
    """Nested results are equal."""
    torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize(
    "name",
    ["synchronized", "exact", "loader", "accumulated", "line_search", "uneven_lists"],
)
def test_two_processes_compute_what_one_does_with_the_joined_batch(two, one, name):
    assert isinstance(two[0][name], dict), two[0][name]
    same(two[0][name], two[1][name], rtol=0, atol=0)
    rtol = 1e-6 if name == "line_search" else 1e-9  # a line search multiplies rounding errors
    same(two[0][name], one(name), rtol=rtol, atol=rtol / 100)


def test_streams_are_shares_already(two, one):
    same(two[0]["uneven_streams"], two[1]["uneven_streams"], rtol=0, atol=0)
    same(two[0]["uneven_streams"], one("uneven_lists"), rtol=1e-9, atol=1e-11)


def test_the_seed_decides_the_order_and_every_example_counts_once(two, one):
    mine, theirs, whole = two[0]["order"], two[1]["order"], one("order")
    assert [sorted(a + b) for a, b in zip(mine, theirs, strict=True)] == [sorted(s) for s in whole]
    steps = len(whole) // 2
    for epoch in (mine[:steps] + theirs[:steps], mine[steps:] + theirs[steps:]):
        assert Counter(v for step in epoch for v in step) == Counter(
            data()[0][:, 0].float().tolist()
        )


def test_gradients_are_those_of_one_process_in_expectation(two):
    found = two[0]["gradients"]
    same(found, two[1]["gradients"], rtol=0, atol=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    for draws in (1, 2):
        whole = recorded(fabric, draws)
        error = (found.var(0) / len(found) + whole.var(0) / len(whole)).sqrt()
        z = (found.mean(0) - whole.mean(0)) / error
        assert float(z.abs().max()) < 4
        assert float(z.square().mean()) < 2
    # Two processes are two draws for a batch that is cut in two.
    assert 0.6 < float(found.var(0).sum() / whole.var(0).sum()) < 1.6


def test_latents_differ_between_processes_unless_they_share_batch_statistics(two):
    assert not torch.isclose(two[0]["draws_apart"], two[1]["draws_apart"]).any()
    same(two[0]["draws_shared"], two[1]["draws_shared"], rtol=0, atol=0)
    assert len(two[0]["draws_shared"].unique(dim=0)) == len(two[0]["draws_shared"])


def test_population_statistics_are_those_of_all_data(two, one):
    same(two[0]["statistics"], two[1]["statistics"], rtol=0, atol=0)
    same(two[0]["statistics"], one("statistics"), rtol=1e-12, atol=1e-13)


def test_the_bank_is_that_of_one_process(two, one):
    same(two[0]["bank"], two[1]["bank"], rtol=0, atol=0)
    same(two[0]["bank"], one("bank"), rtol=1e-12, atol=1e-13)
    assert two[0]["bank"]["rows"]["mean"].shape[0] == 7
    assert int(two[0]["bank"]["sync"]["size"]) == 8


def test_early_stopping_is_decided_for_all(two):
    mine = two[0]["early_stopping"]
    same(mine, two[1]["early_stopping"], rtol=0, atol=0)
    assert len(mine["course"]) == mine["best"] + 1 < 12


def test_validation_is_that_of_all_data(two, one):
    for reduced, alone in (two[0]["validated"], two[1]["validated"]):
        assert reduced == pytest.approx(alone, rel=1e-12)


def test_one_process_stops_all(two):
    assert two[0]["stopped_by_one"] == two[1]["stopped_by_one"] == 2


def test_losses_are_those_of_all(two, one):
    course = two[0]["exact"]["course"]
    assert course == two[1]["exact"]["course"]
    losses = [epoch[1] for epoch in course]
    assert losses == pytest.approx([epoch[1] for epoch in one("exact")["course"]], rel=1e-10)


def test_a_loss_that_is_not_finite_ends_all(two):
    for found in two:
        assert found["diverged"].startswith("DataError: fit: the loss is nan after 0.67 epochs")


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("bad_input", None, "DataError: fit: train_data has a batch with inputs that are not"),
        ("broken_callback", 1, "OSError: disk full"),
        ("broken_at_start", 1, "DataError: data: an iterator is used up"),
        ("broken_sampler", 0, "LookupError: no more indices"),
        ("one_without_data", 1, "DataError: fit: train_data has no batch in this process"),
        ("unwritable", 0, "FileError: "),
    ],
)
def test_an_error_of_one_process_ends_all_with_its_message(two, name, rank, message):
    failed = next(r for r in range(2) if two[r][name].startswith(message))
    assert rank in (None, failed)
    other = two[1 - failed][name]
    assert other == f"ProcessError: process {failed} of 2 ended with {two[failed][name]}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few_examples", "DataError: data: 1 examples are too few for 2 processes"),
        ("same_lists", "DataError: fit: train_data begins with the same batch in several"),
        ("different_kinds", "DataError: fit: train_data is a data set or its loader in some"),
        ("uneven_synchronized", "OptionError: fit: 1 shares statistics between processes"),
    ],
)
def test_all_processes_refuse(two, name, message):
    assert all(found[name].startswith(message) for found in two)


def test_a_checkpoint_goes_on_bit_by_bit(two):
    for found in two:
        same(found["resumed"]["resumed"], found["resumed"]["whole"], rtol=0, atol=0)
    same(two[0]["resumed"], two[1]["resumed"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["own_buffers", "autoguide", "frozen"])
def test_processes_end_with_the_same_numbers(two, name):
    assert isinstance(two[0][name], dict), two[0][name]
    same(two[0][name], two[1][name], rtol=0, atol=0)


def test_every_case_is_looked_at(two):
    source = Path(__file__).read_text()
    assert [name for name in CASES if f'"{name}"' not in source] == []


class Strangers(Processes):
    """Some processes that never meet: a plan is dealt without asking the others."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.size, self.rank = size, rank


def dealt(plan, size, **options):
    shares = [Share(Strangers(size, rank), **options) for rank in range(size)]
    return [share.deal([list(batch) for batch in plan]) for share in shares]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("number", [12, 13, 17, 23])
def test_rounds_have_all_examples_once_and_no_process_is_without(number, batch, size):
    plan = list(BatchSampler(SequentialSampler(range(number)), batch, drop_last=False))
    shares = dealt(plan, size, rounds=True, least=2)
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for part in share for i in part) == list(range(number))
    rounds = list(zip(*shares, strict=True))
    assert all(len(part) >= 2 for parts in rounds for part in parts)
    assert all(len({len(part) for part in parts}) == 1 for parts in rounds[:-1])
    sizes = [len(part) for part in rounds[-1]]
    assert max(sizes) - min(sizes) <= 1
    # A round is what one process would see in a larger batch.
    whole = [i for parts in rounds for part in parts for i in part]
    assert whole == list(range(number))


def test_without_rounds_batches_stay_whole():
    plan = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert dealt(plan, 2, least=2) == [[[0, 1, 2], [6, 7, 8, 9]], [[3, 4, 5]]]
    assert dealt(plan, 3) == [[[0, 1, 2], [9]], [[3, 4, 5]], [[6, 7, 8]]]
    assert dealt(plan, 2, limit=1) == [[[0, 1, 2]], []]
    assert dealt(plan, 2, equal=True) == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5]]]


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="3 examples are too few for 2 processes.*at least 2"):
        dealt([[0, 1, 2]], 2, rounds=True, least=2)


def test_one_process_gets_the_data_as_they_are():
    loader = DataLoader(TensorDataset(*data()), 4)
    assert Share(Processes(), rounds=True).of(loader) is loader


def test_strategies_that_take_models_apart_are_refused_by_name():
    def plan(model, mesh):
        return model

    fabric = Fabric(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(plan))
    model, guide = make()
    with pytest.raises(OptionError, match=r'ModelParallelStrategy.*strategy="ddp"'):
        pn.fit(model, guide, data(), fabric=fabric, progress=False)


def test_what_is_no_fabric_is_refused():
    model, _ = make()
    for wrong in ("ddp", Fabric):
        with pytest.raises(OptionError, match="expected a Lightning Fabric"):
            pn.estimate_population_statistics(model, data(), fabric=wrong)


def test_processes_that_were_not_launched_are_refused():
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    model, guide = make()
    with pytest.raises(OptionError, match=r"fabric\.launch\(\) first"):
        pn.fit(model, guide, data(), fabric=fabric, progress=False)


def test_torch_layers_that_share_statistics_stay_so():
    network = pn.convert(nn.Sequential(nn.Linear(5, 4), nn.SyncBatchNorm(4)))
    assert network[1].normalizer == pn.normalizers.SyncBatch(eps=1e-5)
    assert network[1].normalizer.spans_processes
