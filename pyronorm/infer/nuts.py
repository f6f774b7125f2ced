"""The posterior of the latents by the No-U-Turn sampler: what other posteriors are judged by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import InitMessenger
from torch import nn

from pyronorm.errors import OptionError
from pyronorm.infer.data import Data, evaluation_mode, gather
from pyronorm.infer.pyro_guide import draws_of_mcmc
from pyronorm.infer.recorded import RecordedNUTS
from pyronorm.inputs import num_examples
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel, init_to_neutral
from pyronorm.normalizers.watch import verified
from pyronorm.randomness import Seed, seed_value, seeded

__all__ = ["run_nuts"]


def run_nuts(
    model: NormalizationModel,
    data: Data,
    num_samples: int = 500,
    warmup: int = 500,
    num_chains: int = 2,
    *,
    target_accept: float = 0.8,
    max_tree_depth: int = 8,
    jit: bool = False,
    seed: Seed = None,
    progress: bool = True,
) -> Draws:
    """Sample the posterior of the latents by NUTS, with the network frozen.

    The network runs in evaluation mode on all the data at once, and its weights are constants. Each
    chain starts at the neutral latents, which are near the mode of a trained network, and adapts its
    step size and a diagonal mass matrix of its own; chains run one after the other. Weights and modes
    are as before afterwards.

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
        jit: compile the potential with ``torch.jit`` (faster for small networks).
        seed: chain ``k`` has ``seed + k``; see :func:`pyronorm.randomness.seeded`.
        progress: whether to show a progress bar per chain.

    Returns:
        The draws of all chains, ``num_chains`` of them. ``stats["diverging"]`` says which trajectories
        diverged; ``energy``, ``tree_depth`` and ``acceptance_rate`` are those of
        :class:`~pyronorm.infer.RecordedNUTS`.

    Raises:
        DataError: if there is no ``y``.
        OptionError: if the data are not the model's ``num_data`` examples, or an option is too small.
        StatisticsError: if population statistics are missing or stale.

    Source: Hoffman & Gelman, "The No-U-Turn Sampler" (JMLR 2014); as in Pyro.
    """
    for name, value, least in (
        ("num_samples", num_samples, 4),  # for Pyro's diagnostics
        ("warmup", warmup, 1),
        ("num_chains", num_chains, 1),
    ):
        if value < least:
            raise OptionError(f"run_nuts: {name} must be at least {least}, got {value}.")
    model.network.refuse_plain("run_nuts")
    network = model.network
    batch = gather(data).to(network)
    y, _ = batch.targets("run_nuts")
    if num_examples(y) != model.num_data:
        raise OptionError(
            "run_nuts: the model is made for "
            f"num_data={model.num_data} examples, got {num_examples(y)}. For the posterior of a "
            "subset make a NormalizationModel of that size on the same network."
        )
    chains = []
    first = None if seed is None else seed_value(seed)
    with verified(network.network), evaluation_mode(model), _frozen(model):
        for chain in range(num_chains):
            kernel = RecordedNUTS(
                model,
                init_strategy=init_to_neutral,
                target_accept_prob=target_accept,
                max_tree_depth=max_tree_depth,
                jit_compile=jit,
                ignore_jit_warnings=jit,
                max_plate_nesting=1,  # said, since Pyro finds it out by a draw from the prior
            )
            mcmc = MCMC(kernel, num_samples, warmup, disable_progbar=not progress)
            # Pyro looks at the sites first; from an improper prior it cannot draw for that.
            own = None if first is None else first + chain
            with seeded(own, network.like), InitMessenger(init_to_neutral):
                mcmc.run(*batch.arguments())
            chains.append(draws_of_mcmc(mcmc, model))
    return Draws.join(chains)


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
