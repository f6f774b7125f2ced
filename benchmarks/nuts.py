"""Effective draws per second of NUTS: ``run_nuts``'s kernel against Pyro's, on the digits network.

The problem is that of ``pyronorm reference``: 64 latents of a trained perceptron, given 1,437 images.
Samplers take turns, a chain each; tracing, compiling and warm-up count. Seconds are those of the
processor, compilers included, in one thread, since other processes run beside.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import arviz as az
import numpy as np
import torch
from pyro.infer import MCMC, NUTS

import pyronorm as pn
from benchmarks.timing import prepare, record
from pyronorm.infer.latent_nuts import LatentNUTS
from pyronorm.normalizers.watch import verified
from pyronorm.study.reference.run import _problem
from pyronorm.study.reference.settings import Settings


def kernels(model: pn.NormalizationModel, names: str) -> dict[str, Any]:
    """The samplers; the first is what others are compared with."""
    options: dict[str, Any] = {
        "init_strategy": pn.init_to_neutral,
        "max_plate_nesting": 1,
        "max_tree_depth": 8,
    }
    jit = {"jit_compile": True, "ignore_jit_warnings": True}
    every: dict[str, Callable[[], Any]] = {
        "pyro.infer.NUTS": lambda: NUTS(model, **options),
        "pyro.infer.NUTS, torch.jit": lambda: NUTS(model, **jit, **options),
        "run_nuts": lambda: LatentNUTS(model, **options),
        "run_nuts, compile": lambda: LatentNUTS(model, compile=True, **options),
        "run_nuts, compile, full_mass": lambda: LatentNUTS(
            model, compile=True, full_mass=True, **options
        ),
    }
    return {
        name: make() for name, make in every.items() if names == "all" or name in names.split(";")
    }


def cpu_seconds() -> float:
    """Of this process and of those that it waited for, compilers among them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def table(
    draws: dict[str, list[np.ndarray]], used: dict[str, list[tuple[float, float]]]
) -> dict[str, dict[str, float]]:
    """A row per sampler, of the chains so far."""
    rows: dict[str, dict[str, float]] = {}
    for name, chains in draws.items():
        data = az.convert_to_dataset({"z": np.stack(chains)})
        ess = az.ess(data, method="bulk")["z"].to_numpy()
        cpu, wall = (sum(column) for column in zip(*used[name], strict=True))
        rows[name] = {
            "cpu_seconds": round(cpu, 1),
            "wall_seconds": round(wall, 1),
            "first_chain_cpu_seconds": round(used[name][0][0], 1),
            "rhat": round(float(az.rhat(data)["z"].max()), 3),
            "ess_min": round(float(ess.min())),
            "ess_mean": round(float(ess.mean())),
            "ess_min_per_second": float(ess.min()) / cpu,
            "ess_mean_per_second": float(ess.mean()) / cpu,
        }
    first = dict(next(iter(rows.values())))
    for row in rows.values():
        for key in ("ess_min_per_second", "ess_mean_per_second"):
            row[f"{key}_ratio"] = round(row[key] / first[key], 2)
            row[key] = round(row[key], 2)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=250)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument(
        "--samplers", default="all", help="names with ; between, the first is Pyro's"
    )
    arguments = parser.parse_args()
    prepare(threads=1)
    warnings.simplefilter("ignore")
    model, train, _ = _problem(Settings())
    model.eval().requires_grad_(False)
    samplers = kernels(model, arguments.samplers)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in samplers}
    used: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    with verified(model.network.network):
        for chain in range(arguments.chains):
            for name, kernel in samplers.items():
                torch.manual_seed(chain)
                kernel.potential_fn = (
                    None  # MCMC takes a kernel a second time for one of a function
                )
                start = cpu_seconds(), time.perf_counter()
                mcmc = MCMC(kernel, arguments.draws, arguments.warmup, disable_progbar=True)
                mcmc.run(*train)
                used[name].append((cpu_seconds() - start[0], time.perf_counter() - start[1]))
                found = mcmc.get_samples()
                draws[name].append(torch.cat([found["shift"], found["scale"].log()], -1).numpy())
                print(f"{name}, chain {chain}: {used[name][-1][0]:.1f} s", flush=True)
            settings = {**vars(arguments), "chains": chain + 1}
            del settings["samplers"]
            rows = table(draws, used)
            record("nuts", {"settings": settings, "samplers": rows})
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
