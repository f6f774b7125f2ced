"""What ``run_nuts`` leaves to be had: chains in one batch, and another sampler on the same potential.

The problem is that of ``benchmarks.nuts``. *One batch*: a compiled step of several chains by ``vmap``
against as many steps of one, which is what could be saved if no chain waited for another. *nutpie*: a
sampler in Rust that takes a function, on the compiled potential and gradient that ``run_nuts`` has too;
it is left out where it is not installed.

Effective draws (of the bulk, by ArviZ) per second of the processor, compiling and warm-up included,
in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import arviz as az
import numpy as np
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import pyronorm as pn
from benchmarks.nuts import cpu_seconds, kernels
from benchmarks.timing import compare, prepare, record
from pyronorm.infer.leapfrog import Leapfrog, fold_constants, value_and_gradient
from pyronorm.normalizers.watch import verified
from pyronorm.study.reference.run import _problem
from pyronorm.study.reference.settings import Settings

Data = tuple[Tensor, ...]


def potential(model: pn.NormalizationModel, data: Data) -> tuple[dict[str, Tensor], Callable]:
    """Where chains start, by site, and Pyro's potential."""
    options: dict[str, Any] = {"max_plate_nesting": 1, "init_strategy": pn.init_to_neutral}
    start, function, *_ = initialize_model(model, data, **options)
    return start, function


def one_batch(model: pn.NormalizationModel, data: Data) -> dict[str, dict[str, dict[str, float]]]:
    """A step of several chains in one graph, relative to their steps one after the other."""
    start, function = potential(model, data)
    leapfrog = Leapfrog(function, start, dense=False, compile=False)
    step, z = leapfrog._step, leapfrog.pack(start)
    ones = torch.ones_like(z)
    single = (z, torch.randn_like(z), 0 * z, torch.tensor(0.01), ones, ones)
    cases = {}
    for threads, chains in ((1, 2), (1, 4), (1, 8), (2, 4)):
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        one = torch.compile(step, dynamic=False)
        many = torch.compile(torch.func.vmap(step), dynamic=False)
        batch = [torch.stack([v] * chains) for v in single]

        def in_turns(one: Any = one, chains: int = chains) -> None:
            for _ in range(chains):
                one(*single)

        def together(many: Any = many, batch: list[Tensor] = batch) -> None:
            many(*batch)

        with torch.no_grad():
            for a, b in zip(one(*single), many(*batch), strict=True):
                torch.testing.assert_close(b[0], a, rtol=1e-3, atol=1e-3)
            name = f"{chains} chains, {threads} thread{'s' * (threads > 1)}"
            cases[name] = compare({"in turns": in_turns, "one batch": together}, 300, 10)
    torch.set_num_threads(1)
    return cases


def by_run_nuts(model: pn.NormalizationModel, data: Data, options: Any, seed: int) -> np.ndarray:
    """Chains of the kernel of ``run_nuts``, of shape (chain, draw, latent)."""
    (kernel,) = kernels(model, "run_nuts, compile").values()
    chains = []
    for chain in range(options.chains):
        torch.manual_seed(1000 * seed + chain)
        kernel.potential_fn = None  # MCMC takes a kernel a second time for one of a function
        mcmc = MCMC(kernel, options.draws, options.warmup, disable_progbar=True)
        mcmc.run(*data)
        found = mcmc.get_samples()
        chains.append(torch.cat([found["scale"].log(), found["shift"]], -1).numpy())
    return np.stack(chains)


def by_nutpie(model: pn.NormalizationModel, data: Data, options: Any, seed: int) -> np.ndarray:
    """Chains of nutpie, on the same potential."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    start, function = potential(model, data)
    z = torch.cat([start[name].detach().reshape(-1) for name in sorted(start)])
    traced = make_fx(torch.func.functionalize(make_fx(value_and_gradient(function, start))(z)))(z)
    compiled = torch.compile(fold_constants(traced), dynamic=False)

    def make_log_density() -> Callable[..., tuple[float, np.ndarray]]:
        def log_density(x: np.ndarray, **_: Any) -> tuple[float, np.ndarray]:
            with torch.no_grad():  # for each thread
                value, gradient = compiled(torch.from_numpy(np.asarray(x)).to(z))
            return -float(value), -gradient.double().numpy()

        return log_density

    problem = from_pyfunc(
        len(z),
        make_log_density,
        lambda *_, **__: lambda x, **___: {"z": np.asarray(x)},
        [np.dtype("float64")],
        [(len(z),)],
        ["z"],
        make_initial_point_fn=lambda _: z.double().numpy(),
    )
    trace = nutpie.sample(
        problem,
        draws=options.draws,
        tune=options.warmup,
        chains=options.chains,
        cores=1,
        seed=seed,
        maxdepth=8,
        progress_bar=False,
        save_warmup=False,
    )
    return np.asarray(trace.posterior["z"])


def row(chains: np.ndarray, seconds: float) -> dict[str, float]:
    """What chains are worth."""
    data = az.convert_to_dataset({"z": chains})
    ess = az.ess(data, method="bulk")["z"].to_numpy()
    return {
        "cpu_seconds": round(seconds, 1),
        "ess_min": round(float(ess.min())),
        "ess_mean": round(float(ess.mean())),
        "ess_min_per_second": round(float(ess.min()) / seconds, 2),
        "ess_mean_per_second": round(float(ess.mean()) / seconds, 2),
        "rhat": round(float(az.rhat(data)["z"].max()), 3),
        "mean": round(float(chains.mean()), 4),
        "std": round(float(chains.std((0, 1)).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=250)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    prepare(threads=1)
    warnings.simplefilter("ignore")
    model, train, _ = _problem(Settings())
    model.eval().requires_grad_(False)
    samplers = {"run_nuts, compile": by_run_nuts}
    if importlib.util.find_spec("nutpie") is not None:
        samplers["nutpie"] = by_nutpie
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in samplers}
    with verified(model.network.network):
        batches = one_batch(model, train)
        for seed in range(options.seeds):
            for name, sample in samplers.items():
                torch._dynamo.reset()
                start = cpu_seconds()
                chains = sample(model, train, options, seed)
                rows[name].append(row(chains, cpu_seconds() - start))
                print(name, rows[name][-1], flush=True)
    record("chains", {"settings": vars(options), "batches": batches, "samplers": rows})
    for case, found in batches.items():
        print(case, found["one batch"])


if __name__ == "__main__":
    main()
