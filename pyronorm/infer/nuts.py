"""The posterior of the latents by the No-U-Turn sampler: what other posteriors are judged by."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn

from pyronorm.checks import Count, Probability, check_count, checked
from pyronorm.errors import DataError, OptionError
from pyronorm.files import StrPath, make_folder, only_run, remove_leftovers
from pyronorm.infer.chain import KeptChain, digest
from pyronorm.infer.data import Data, gather
from pyronorm.infer.latent_nuts import LatentNUTS
from pyronorm.infer.messages import plain_messages
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.pyro_guide import draws_of_mcmc
from pyronorm.inputs import all_finite, num_examples, tensors_of
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel, init_to_neutral
from pyronorm.normalizers.watch import unchecked, verified
from pyronorm.progress import Bar, progress_bar
from pyronorm.randomness import Seed, seed_value, seeded
from pyronorm.settings import arguments_of

__all__ = ["run_nuts"]


@checked
def run_nuts(
    model: NormalizationModel,
    data: Data,
    num_samples: Count = 500,
    warmup: Count = 500,
    num_chains: Count = 2,
    *,
    target_accept: Probability = 0.8,
    max_tree_depth: Count = 8,
    full_mass: bool = False,
    compile: bool = False,  # noqa: A002
    dtype: torch.dtype | None = None,
    seed: Seed = None,
    folder: StrPath | None = None,
    progress: bool = True,
) -> Draws:
    """Sample the posterior of the latents by NUTS, with the network frozen.

    The network runs in evaluation mode on all the data at once, and its weights are constants. Each
    chain starts at the neutral latents, which are near the mode of a trained network, and adapts its
    step size and a mass matrix of its own; chains run one after the other. Weights and modes are as
    before afterwards.

    Pyro's sampler draws: the chain is that of ``pyro.infer.NUTS`` up to rounding. Potential, gradient
    and integrator are traced to one graph of operations on one vector, which no longer runs Pyro's
    handlers; layers up to the first latents are computed once. Where a model cannot be traced, Pyro
    evaluates it at each step.

    An interruption (Ctrl-C) ends the run with the draws so far, and a warning: as many chains, cut to
    one length, as make the most draws. With a ``folder`` it goes through instead, and the same call
    goes on, also after a kill: at most 20 draws or one warm-up are made again, and on a CPU the draws
    are bit by bit those of a run that nothing interrupted.

    Args:
        model: the model. Its likelihood counts each example once, so it has to be made for these
            data: for a subset make a model with ``num_data`` of that size, whose posterior is that of
            the subset.
        data: pairs ``(x, y)``, or ``(x, y, weight)``.
        num_samples: draws per chain that are kept, at least 4.
        warmup: steps of adaptation before them.
        num_chains: number of chains.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: a trajectory has at most ``2 ** max_tree_depth`` steps.
        full_mass: adapt a full mass matrix, for latents that are correlated; it needs more draws of
            warm-up than there are latents.
        compile: compile each step with ``torch.compile``, which takes seconds and pays from about a
            thousand draws on. Where there is no C++ compiler a warning says so, and the run goes on
            without.
        dtype: precision to sample in, ``torch.float64`` say, on a copy of the network; None for its
            own.
        seed: chain ``k`` has ``seed + k``; see :func:`pyronorm.randomness.seeded`.
        folder: where a file ``chain-K.safetensors`` per chain is kept; made if it is not there. It
            needs a seed. More draws than there are go on from there.
        progress: show a progress bar, of all chains; see :mod:`pyronorm.progress`.

    Returns:
        The draws of all chains, ``num_chains`` of them. ``stats["diverging"]`` says which trajectories
        diverged; ``energy``, ``tree_depth`` and ``acceptance_rate`` are those of
        :class:`~pyronorm.infer.RecordedNUTS`. Their precision is ``dtype``.

    Raises:
        DataError: if there is no ``y``, or if data are impossible or not finite.
        OptionError: if the data are not the model's ``num_data`` examples, an option is too small,
            ``dtype`` is none of real numbers, or the folder has chains of another run or is in use.
        FileError: if a chain's file is damaged, or cannot be written.
        StatisticsError: if population statistics are missing or stale.

    Source: Hoffman & Gelman, "The No-U-Turn Sampler" (JMLR 2014); as in Pyro.
    """
    check_count("run_nuts", "num_samples", num_samples, least=4)  # for Pyro's diagnostics
    model.network.refuse_plain("run_nuts")
    if dtype is not None and not dtype.is_floating_point:
        raise OptionError(
            f"run_nuts: dtype must be one of real numbers, such as torch.float64, got {dtype}."
        )
    network = model.network
    if not model.prior.law(network.space, network.like).has_density:
        raise OptionError(
            f"run_nuts: {model.prior} has no density, so the posterior has none. Take a prior under "
            "which shift and scale are both random."
        )
    examples = gather(data)
    batch = examples.to(network)
    y, _ = batch.targets("run_nuts")
    if num_examples(y) != model.num_data:
        raise OptionError(
            "run_nuts: the model is made for "
            f"num_data={model.num_data} examples, got {num_examples(y)}. For the posterior of a "
            "subset make a NormalizationModel of that size on the same network."
        )
    if not bool(all_finite(batch.x)):
        raise DataError("run_nuts: the data have inputs that are not finite.")
    if folder is not None and seed is None:
        raise OptionError("run_nuts: chains in a folder need a seed, for the same ones to go on.")
    first = None if seed is None else seed_value(seed)
    run = {
        "warmup": warmup,
        "target_accept": target_accept,
        "max_tree_depth": max_tree_depth,
        "full_mass": full_mass,
        "compile": compile,
        "dtype": str(dtype or network.like.dtype),
        **_described(model),
        "data": digest(t for part in batch.arguments() for t in tensors_of(part).values()),
    }
    chains: list[Draws] = []
    weights = network.weights()
    with ExitStack() as stack:
        for context in (
            verified(network.network),
            evaluation_mode(model),
            _frozen(model),
            _owned(folder),
        ):
            stack.enter_context(context)
        with torch.no_grad():
            output = network(batch.x)
        model.likelihood.check_training(
            y, output.to(torch.promote_types(output.dtype, torch.float32))
        )
        if dtype is not None and dtype != network.like.dtype:
            stack.enter_context(unchecked())  # the copy's weights are rounded otherwise
            model = copy.deepcopy(model).to(dtype)
            network = model.network
            batch = examples.to(network)
        kernel = LatentNUTS(
            model,
            compile=compile,
            full_mass=full_mass,
            init_strategy=init_to_neutral,
            target_accept_prob=target_accept,
            max_tree_depth=max_tree_depth,
            max_plate_nesting=1,  # said, since Pyro finds it out by a draw from the prior
        )
        total = num_chains * (warmup + num_samples)
        bar = stack.enter_context(progress_bar("NUTS", total, show=progress))
        for chain in range(num_chains):
            # Pyro looks at the sites first; from an improper prior it cannot draw for that.
            own = None if first is None else first + chain
            path = None if folder is None else Path(folder) / f"chain-{chain}.safetensors"
            kept = KeptChain(kernel, network.like.device, path, {"seed": own, **run})
            kept.seen = partial(_tell, bar, chain, warmup + num_samples)

            def sample(kernel: KeptChain, number: int, seed: int | None = own) -> Draws:
                mcmc = MCMC(kernel, number, warmup, disable_progbar=True)
                with plain_messages(), seeded(seed, network.like), InitMessenger(init_to_neutral):
                    mcmc.run(*batch.arguments())
                return replace(draws_of_mcmc(mcmc, model), weights=weights)

            try:
                chains.append(sample(kept, num_samples))
            except KeyboardInterrupt:
                kept.write()
                if folder is not None or not (chains or len(kept)):
                    raise
                if len(kept):
                    chains.append(sample(kept.again(), len(kept), 0))
                return _most_draws(chains, num_chains, num_samples)
    return Draws.join(chains)


def _tell(bar: Bar, chain: int, steps: int, step: int, state: Mapping[str, Any]) -> None:
    words = ", ".join(f"{name} {value}" for name, value in state.items())
    bar.advance(f"chain {chain + 1}  {words}", to=chain * steps + step)


def _most_draws(chains: list[Draws], num_chains: int, num_samples: int) -> Draws:
    """Of chains whose last is shorter, those that make the most draws when cut to one length."""
    last = len(chains[-1])
    kept = chains[:-1] if (len(chains) - 1) * num_samples > len(chains) * last else chains
    length = min(map(len, kept))
    warnings.warn(
        f"run_nuts: interrupted. Chains have {', '.join(str(len(one)) for one in chains)} draws of "
        f"{num_samples}, {num_chains} chains were asked for; {len(kept)} of {length} draws each are "
        "given. With run_nuts(folder=...) a run can be gone on with.",
        stacklevel=3,
    )
    return Draws.join([replace(one[:length], num_chains=1) for one in kept])


@contextmanager
def _owned(folder: StrPath | None) -> Iterator[None]:
    """Context of the only run in a folder, if there is one."""
    if folder is None:
        yield
        return
    with only_run(make_folder(folder), "run_nuts"):
        remove_leftovers(folder)
        yield


def _described(model: NormalizationModel) -> dict[str, Any]:
    """What a model is, ready for JSON."""
    parts = {"likelihood": model.likelihood, "prior": model.prior}
    values = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return {
        "num_data": model.num_data,
        "network": digest(values),
        **{name: f"{type(part).__name__} {_settings(part)}" for name, part in parts.items()},
    }


def _settings(part: Any) -> dict[str, Any]:
    """The numbers and texts that made a prior or a likelihood, as far as it says."""
    try:
        arguments = arguments_of(part, "run_nuts")
    except OptionError:
        return {}
    return {k: v for k, v in arguments.items() if v is None or isinstance(v, (int, float, str))}


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Context in which no parameter asks for a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
