"""NUTS over one vector: Pyro's sampler without what it costs per step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.infer import NUTS
from torch import Tensor

from pyronorm.infer.leapfrog import Leapfrog, Point
from pyronorm.infer.recorded import RECORDED

__all__ = ["LatentNUTS"]

_NUTS: Any = NUTS  # Pyro's samplers have no types


class _Tree(NamedTuple):
    """A part of a trajectory.

    Attributes:
        first: the point that it begins with, on the side of the rest of the trajectory.
        last: the point that it ends with.
        proposal: the point that is drawn of it.
        velocities: sum over its points.
        weight: log of the sum of their densities, relative to where the trajectory started.
        stopped: whether it turned or diverged.
        diverging: whether it diverged.
        accepted: sum of acceptance probabilities.
        size: number of points.
    """

    first: Point
    last: Point
    proposal: Point
    velocities: Tensor
    weight: float
    stopped: bool
    diverging: bool
    accepted: float
    size: int


class LatentNUTS(_NUTS):  # type: ignore[misc]
    """Pyro's NUTS, with each step of a trajectory as one graph, and trees built on the host.

    Adaptation, momenta, what is drawn and in which order are those of
    :class:`pyro.infer.NUTS` (multinomial sampling): in exact arithmetic the chain is the same one.
    Statistics of each draw are those of :class:`~pyronorm.infer.RecordedNUTS`.

    Args:
        args: those of ``pyro.infer.NUTS``.
        compile: whether steps are compiled, see :class:`~pyronorm.infer.leapfrog.Leapfrog`.
        kwargs: those of ``pyro.infer.NUTS``; ``full_mass`` is a truth value.

    Source: Hoffman & Gelman, "The No-U-Turn Sampler" (JMLR 2014); as in Pyro.
    """

    def __init__(self, *args: Any, compile: bool = False, **kwargs: Any) -> None:  # noqa: A002
        super().__init__(*args, **kwargs)
        self._compile = compile
        self._dense = bool(kwargs.get("full_mass", False))
        self._leapfrog: Leapfrog | None = None
        self._kept: dict[str, list[float]] = {name: [] for name in RECORDED}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin a chain. The graph is made for the first one, and kept."""
        self._kept = {name: [] for name in RECORDED}
        super().setup(warmup_steps, *args, **kwargs)
        if self._leapfrog is None:
            self._leapfrog = Leapfrog(
                self.potential_fn, self.initial_params, dense=self._dense, compile=self._compile
            )

    def sample(self, params: Any) -> Any:
        """Take a step, and keep what is known of it after the warmup."""
        leapfrog = self._leapfrog
        assert leapfrog is not None
        z, potential, gradients = self._fetch_from_cache()
        r, velocity = self._sample_r(name=f"r_t={self._t}")
        (velocity,) = velocity.values()
        energy = potential + velocity.dot(velocity) / 2
        start = Point(
            leapfrog.pack(z),
            leapfrog.pack(r),
            velocity,
            leapfrog.pack(gradients),
            potential,
            energy,
        )
        initial = float(energy)
        ends = {-1: start, 1: start}
        velocities, weight = velocity, 0.0
        proposal, moved = start, False
        depth, accepted, size = 0, 0.0, 0
        (inverse_mass,) = self.inverse_mass_matrix.values()
        (root,) = self.mass_matrix_adapter._mass_matrix_sqrt_inverse.values()
        coin = energy.new_empty(())
        sizes = {side: energy.new_tensor(side * self.step_size) for side in ends}

        def flip(probability: float) -> bool:
            return bool(torch.bernoulli(coin.fill_(probability)))

        def leaf(point: Point, side: int) -> _Tree:
            new = leapfrog(point, sizes[side], inverse_mass, root)
            change = float(new.energy) - initial
            change = math.inf if math.isnan(change) else change
            diverging = change > self._max_sliced_energy
            chance = math.exp(-max(change, 0.0))
            return _Tree(new, new, new, new.velocity, -change, diverging, diverging, chance, 1)

        def build(point: Point, side: int, depth: int) -> _Tree:
            if depth == 0:
                return leaf(point, side)
            one = build(point, side, depth - 1)
            if one.stopped:
                return one
            two = build(one.last, side, depth - 1)
            total = _log_add(one.weight, two.weight)
            chosen = two if flip(math.exp(two.weight - total)) else one
            velocities = one.velocities + two.velocities
            return _Tree(
                one.first,
                two.last,
                chosen.proposal,
                velocities,
                total,
                two.stopped or _turns(one.first, two.last, velocities),
                two.diverging,
                one.accepted + two.accepted,
                one.size + two.size,
            )

        while depth < self._max_tree_depth:
            side = 1 if flip(0.5) else -1
            tree = build(ends[side], side, depth)
            ends[side] = tree.last
            accepted, size = accepted + tree.accepted, size + tree.size
            if tree.diverging and self._t >= self._warmup_steps:
                self._divergences.append(self._t - self._warmup_steps)
            if tree.stopped:
                break
            depth += 1
            if float(torch.rand_like(coin)) < math.exp(min(tree.weight - weight, 0.0)):
                proposal, moved = tree.proposal, True
            velocities = velocities + tree.velocities
            if _turns(ends[-1], ends[1], velocities):
                break
            weight = _log_add(weight, tree.weight)

        if moved:
            z = leapfrog.unpack(proposal.z)
            gradients = leapfrog.unpack(proposal.gradient)
            self._cache(z, proposal.potential, gradients)
        chance = accepted / size
        self._t += 1
        if self._t > self._warmup_steps:
            number = self._t - self._warmup_steps
            self._accept_cnt += moved
            for name, value in zip(RECORDED, (initial, depth, chance), strict=True):
                self._kept[name].append(value)
        else:
            number = self._t
            self._adapter.step(self._t, z, energy.new_tensor(chance), gradients)
        self._mean_accept_prob += (chance - self._mean_accept_prob) / number
        return z.copy()

    def diagnostics(self) -> dict[str, Any]:
        """What Pyro says of the chain, and the statistics of each draw."""
        return {**super().diagnostics(), **{name: [*value] for name, value in self._kept.items()}}


def _turns(first: Point, last: Point, velocities: Tensor) -> bool:
    """Whether going on brings the ends nearer to each other."""
    ends = torch.stack([first.velocity, last.velocity])
    angles = ends @ (velocities - (first.velocity + last.velocity) / 2)
    return bool((angles <= 0).any())


def _log_add(a: float, b: float) -> float:
    low, high = min(a, b), max(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
