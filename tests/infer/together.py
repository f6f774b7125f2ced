"""What two processes do together, and one process alone: cases, and a program that runs them all.

``python -m tests.infer.together RANK FOLDER``, in two processes, writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyronorm as pn
from pyronorm.infer import Callback
from pyronorm.normalizers import Batch, BatchWhitening, Ghost, Group, LatentNorm, SyncBatch
from tests.nets import mlp

N = 21  # neither a multiple of the batches nor of the processes
CASES: dict[str, Callable[[Fabric, Path], Any]] = {}


def case(function):
    """Register a case: a function of the fabric and a folder that returns plain types and tensors."""
    CASES[function.__name__] = function
    return function


def data(number: int = N):
    """Inputs whose first column says which example they are."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(number, 5, generator=generator, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, number)
    return x, (x[:, 1] + x[:, 0] > 0.2).long()


def make(normalizer=None, guide=pn.guides.Point, prior=None):
    """A model in double precision, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = pn.convert(mlp(), normalizer).double()
        model = pn.NormalizationModel(
            network, pn.likelihoods.Categorical(), N, prior or pn.priors.BatchNoise(16)
        )
        return model, guide(model).double()


def state(model, *others):
    """All numbers of a model and its statistics, and of others."""
    found = {k: v.clone() for k, v in model.state_dict().items()}
    for number, other in enumerate(others):
        found |= {f"{number}.{k}": v.clone() for k, v in other.state_dict().items()}
    return found


def course(history):
    """A history without times."""
    return [(e.epoch, e.loss, e.kl_weight, e.lr, e.validation_nll) for e in history.epochs]


def trained(fabric, normalizer, train=None, *, guide=pn.guides.Point, batch=8, epochs=2, **options):
    """State and history after a fit in batches of ``batch`` of all processes together."""
    model, guide = make(normalizer, guide)
    history = pn.fit(
        model,
        guide,
        data() if train is None else train,
        epochs=epochs,
        batch_size=batch // fabric.world_size,
        fabric=fabric,
        progress=False,
        **{"seed": 4, "lr": 0.03 if "optimization" not in options else None, **options},
    )
    return {"state": state(model, guide), "course": course(history)}


def sgd(groups):
    """Plain gradient descent."""
    return torch.optim.SGD(groups, lr=0.1)


@case
def synchronized(fabric, folder):
    """Batch statistics over all processes; alone, those of the joined batch."""
    return trained(fabric, SyncBatch(), optimization=pn.Optimization(optimizer=sgd))


@case
def exact(fabric, folder):
    """Nothing is shared but the gradient; a rest of 5 in batches of 8."""
    return trained(fabric, Group(2), validation=pn.Validation(data(), 2))


@case
def loader(fabric, folder):
    """A loader of the user's, with a generator for its order."""
    size = 8 // fabric.world_size
    generator = torch.Generator().manual_seed(8)
    train = DataLoader(TensorDataset(*data()), size, shuffle=True, generator=generator)
    return trained(fabric, Group(2), train)


@case
def accumulated(fabric, folder):
    """Three batches in steps of two: the last step has one, whose gradient was not shared before."""
    optimization = pn.Optimization(optimizer=sgd, accumulate=2, gradient_clip_norm=0.5)
    return trained(fabric, Group(2), optimization=optimization)


@case
def line_search(fabric, folder):
    """LBFGS decides by the loss."""

    def lbfgs(groups):
        parameters = [p for group in groups for p in group["params"]]
        return torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", max_iter=4)

    return trained(fabric, Group(2), epochs=1, optimization=pn.Optimization(optimizer=lbfgs))


@case
def order(fabric, folder):
    """The examples of each step, as numbers, under a seed."""
    seen: list[list[float]] = []

    def look(x, y):
        seen.append(x[:, 0].tolist())
        return x, y

    trained(fabric, Group(2), augment=look)
    return seen


class Recorder(torch.optim.SGD):
    """Keeps gradients, and changes nothing."""

    def __init__(self, groups) -> None:
        super().__init__(groups, lr=0.0)
        self.found: list[torch.Tensor] = []

    def step(self, closure=None):
        parameters = self.param_groups[-1]["params"]  # of the guide
        self.found.append(torch.cat([p.grad.flatten().clone() for p in parameters]))


def recorded(fabric, draws):
    """The guide's gradients for many draws, all data in each step."""
    made = []

    def optimizer(groups):
        made.append(Recorder(groups))
        return made[0]

    model, guide = make(Group(2), lambda m: pn.guides.MeanField.from_batch_size(m, 8))
    model.draws = draws
    pn.fit(
        model,
        guide,
        data(),
        epochs=80,
        batch_size=24,
        optimization=pn.Optimization(optimizer=optimizer),
        fabric=fabric,
        seed=6,
        progress=False,
    )
    return torch.stack(made[0].found)


@case
def gradients(fabric, folder):
    """One draw in each process."""
    return recorded(fabric, 1)


def latents_seen(fabric, normalizer):
    """The shift of the first layer in each step."""
    model, guide = make(normalizer, pn.guides.MeanField)
    layer = next(m for m in model.modules() if isinstance(m, LatentNorm))
    seen = []
    layer.register_forward_pre_hook(
        lambda layer, _: seen.append(layer.latents[0].detach().clone()) if layer.latents else None
    )
    pn.fit(model, guide, data(), epochs=1, batch_size=4, fabric=fabric, seed=2, progress=False)
    return torch.stack(seen)


@case
def draws_apart(fabric, folder):
    """Each process draws latents of its own."""
    return latents_seen(fabric, Group(2))


@case
def draws_shared(fabric, folder):
    """Examples that share batch statistics share the draw."""
    return latents_seen(fabric, SyncBatch())


def estimated(fabric, normalizer, **options):
    """Population statistics over a loader that shuffles."""
    model, _ = make(normalizer)
    size = 8 // fabric.world_size if normalizer.spans_processes else 4
    generator = torch.Generator().manual_seed(9)
    train = DataLoader(TensorDataset(*data()), size, shuffle=True, generator=generator)
    pn.estimate_population_statistics(model, train, fabric=fabric, **options)
    model.network.check_statistics()
    return state(model)


@case
def statistics(fabric, folder):
    """Of all normalizers with batch statistics, over all data and over some batches."""
    kinds = {
        "batch": Batch(),
        "ghost": Ghost(2),
        "whitening": BatchWhitening(2),
        "sync": SyncBatch(),
    }
    found = {name: estimated(fabric, kind) for name, kind in kinds.items()}
    found["some"] = estimated(fabric, Batch(), num_batches=3)
    found["one batch"] = estimated(fabric, Batch(), num_batches=1)  # and a process without data
    found["some of sync"] = estimated(fabric, SyncBatch(), num_batches=2)
    return found


@case
def bank(fabric, folder):
    """Rows in several passes over the data, and in one."""
    found = {}
    for name, sync, number in (("rows", False, 7), ("pass", False, None), ("sync", True, 5)):
        model, _ = make(SyncBatch() if sync else Batch())
        pn.estimate_population_statistics(model, data()[0])  # of one process, in each
        size = 8 // fabric.world_size if sync else 4
        made = pn.collect_bank(model, data(), number, size, seed=5, fabric=fabric)
        found[name] = {"size": torch.tensor(made.batch_size), "mean": made.mean, "var": made.var}
    return found


@case
def early_stopping(fabric, folder):
    """Patience 1 and one draw; the generators of the processes differ."""
    torch.manual_seed(100 + fabric.global_rank)
    model, guide = make(Batch(), pn.guides.MeanField)
    x, y = data()
    history = pn.fit(
        model,
        guide,
        (x, y),
        epochs=12,
        batch_size=4,
        lr=0.3,
        validation=pn.Validation((x, 1 - y), 1),
        callbacks=[pn.EarlyStopping(1)],
        fabric=fabric,
        progress=False,
    )
    return {
        "state": state(model, guide),
        "course": course(history),
        "best": history.best_epoch,
    }


@case
def validated(fabric, folder):
    """The NLL of validation, and what each process finds on all data by itself."""
    model, guide = make(Batch())
    valid = data(13)
    history = pn.fit(
        model,
        guide,
        data(),
        epochs=1,
        batch_size=4,
        validation=pn.Validation(valid, 1),
        fabric=fabric,
        progress=False,
    )
    return history.epochs[0].validation_nll, pn.infer.predictive_nll(model, guide, valid, 1)


@case
def stopped_by_one(fabric, folder):
    """A callback of process 1 alone stops."""

    class Stop(Callback):
        def on_step_end(self, trainer):
            if fabric.global_rank == 1 and trainer.steps == 4:
                trainer.stop()

    return len(trained(fabric, Group(2), epochs=5, callbacks=[Stop()])["course"])


@case
def diverged(fabric, folder):
    """A loss that is not finite."""

    class Break(Callback):  # only what process 1 computes with
        def on_step_end(self, trainer):
            if fabric.global_rank == fabric.world_size - 1 and trainer.steps == 2:
                with torch.no_grad():
                    next(trainer.model.network.parameters()).fill_(float("nan"))

    return trained(fabric, Group(2), callbacks=[Break()])


@case
def bad_input(fabric, folder):
    """An input that is not finite, in the batch of one process."""
    x, y = data()
    x[7, 2] = float("inf")
    return trained(fabric, Group(2), (x, y))


@case
def broken_callback(fabric, folder):
    """An error of a callback in process 1 alone, after step 3, within an epoch."""

    class Break(Callback):
        def on_step_end(self, trainer):
            if fabric.global_rank == 1 and trainer.steps == 4:
                raise OSError("disk full")

    return trained(fabric, Group(2), callbacks=[Break()], epochs=3)


@case
def broken_at_start(fabric, folder):
    """An argument of one process alone cannot be used."""
    train = data() if fabric.global_rank == 0 else iter([data()])
    return trained(fabric, Group(2), train)


@case
def different_kinds(fabric, folder):
    """Tensors in one process, a list of batches in the other."""
    return trained(fabric, Group(2), data() if fabric.global_rank == 0 else [data()])


@case
def broken_sampler(fabric, folder):
    """The order comes from process 0, which fails to give one."""

    class Broken(torch.utils.data.Sampler):
        def __iter__(self):
            yield 0
            raise LookupError("no more indices")

        def __len__(self):
            return N

    train = DataLoader(TensorDataset(*data()), 4, sampler=Broken())
    return trained(fabric, Group(2), train)


@case
def few_examples(fabric, folder):
    """Fewer examples than processes."""
    x, y = data()
    return trained(fabric, Group(2), (x[:1], y[:1]))


@case
def same_lists(fabric, folder):
    """A list of batches that each process has whole."""
    x, y = data()
    return trained(fabric, Group(2), list(zip(x.split(4), y.split(4), strict=True)))


def parts(fabric):
    """Shares of different lengths as lists of batches; alone, the batches they make together."""
    x, y = data()
    whole = list(zip(x.split(3), y.split(3), strict=True))  # 7 batches
    first, second = whole[:5], whole[5:]
    if fabric.world_size == 2:
        return (first, second)[fabric.global_rank]
    joined = [
        tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=False)
    ]
    return joined + first[len(second) :]


@case
def uneven_lists(fabric, folder):
    """Five batches in process 0, two in process 1."""
    return trained(fabric, Group(2), parts(fabric))


@case
def uneven_streams(fabric, folder):
    """The same from a stream, in a loader with batches of 3."""

    class Stream(IterableDataset):
        def __iter__(self):
            for x, y in parts(fabric):
                yield from zip(x, y, strict=True)

    if fabric.world_size == 1:
        return trained(fabric, Group(2), parts(fabric))
    return trained(fabric, Group(2), DataLoader(Stream(), batch_size=3))


@case
def uneven_synchronized(fabric, folder):
    """Layers that share statistics cannot run where one process has no batch."""
    return trained(fabric, SyncBatch(), parts(fabric))


@case
def one_without_data(fabric, folder):
    """A share of nothing."""
    x, y = data()
    return trained(fabric, Group(2), [(x, y)] if fabric.global_rank == 0 else [])


@case
def resumed(fabric, folder):
    """Interrupted within the second epoch, and gone on with; and never interrupted."""
    torch.manual_seed(50 + fabric.global_rank)

    class Interrupt(Callback):
        def on_step_end(self, trainer):
            if trainer.steps == 5:
                raise KeyboardInterrupt

    def run(*callbacks):
        options = {"guide": pn.guides.MeanField, "epochs": 3, "callbacks": callbacks}
        options |= {"validation": pn.Validation(data(), 2)}
        options |= {"augment": lambda x, y: (x + 0.01 * torch.randn_like(x), y)}
        return trained(fabric, Batch(), **options)

    whole = run(pn.EarlyStopping(5))
    with contextlib.suppress(KeyboardInterrupt):
        run(pn.EarlyStopping(5), Interrupt(), pn.Checkpoint(folder / "run", every=2))
    checkpoint = pn.Checkpoint(folder / "run", every=2, resume=True)
    return {"whole": whole, "resumed": run(pn.EarlyStopping(5), checkpoint)}


@case
def unwritable(fabric, folder):
    """Process 0 cannot write its checkpoint."""
    (folder / "file").write_text("in the place of a folder")
    return trained(fabric, Group(2), callbacks=[pn.Checkpoint(folder / "file" / "run")])


@case
def own_buffers(fabric, folder):
    """A layer left as it is moves its running mean itself."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network = pn.convert(network, Group(2), skip=["0"])
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), N).double()
    guide = pn.guides.Point(model)
    pn.fit(model, guide, data(), epochs=1, batch_size=4, fabric=fabric, progress=False)
    return state(model)


@case
def autoguide(fabric, folder):
    """A guide of Pyro's makes its parameters at its first call."""
    from pyro.infer.autoguide import AutoNormal

    torch.manual_seed(60 + fabric.global_rank)
    model, _ = make(Group(2), prior=pn.priors.Standard())
    guide = AutoNormal(model, init_loc_fn=pn.init_to_neutral)
    pn.fit(model, guide, data(), epochs=1, batch_size=4, fabric=fabric, progress=False)
    return state(guide)


@case
def frozen(fabric, folder):
    """The posterior alone, on statistics that stay."""
    model, guide = make(Batch(), pn.guides.MeanField)
    pn.estimate_population_statistics(model, data()[0])
    pn.fit(
        model,
        guide,
        data(),
        epochs=2,
        batch_size=4,
        train_network=False,
        validation=pn.Validation(data(), 2),
        fabric=fabric,
        progress=False,
    )
    return state(model, guide)


def run_cases(fabric: Fabric, folder: Path, names=None) -> dict[str, Any]:
    """What each case returns, or its error."""
    found: dict[str, Any] = {}
    for name in CASES if names is None else names:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        print(name, flush=True)  # in the message of a test that waited too long
        own = folder / name
        own.mkdir(exist_ok=True)
        try:
            found[name] = CASES[name](fabric, own)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    rank, folder = sys.argv[1], Path(sys.argv[2])
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # never used
    }
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=int(rank), world_size=2)
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    torch.save(run_cases(fabric, folder, sys.argv[3:] or None), folder / f"{rank}.pt")
    # Threads of Gloo that outlive the interpreter may abort it, so nothing may keep their group.
    world = weakref.ref(torch.distributed.group.WORLD)
    torch.distributed.destroy_process_group()
    del fabric
    gc.collect()
    assert world() is None
