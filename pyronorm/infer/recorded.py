"""NUTS that keeps what it knows of each draw."""

from __future__ import annotations

from typing import Any

from pyro.infer import NUTS

__all__ = ["RECORDED", "RecordedNUTS"]

RECORDED = ("energy", "tree_depth", "acceptance_rate")
"""What is kept, by ArviZ's names."""


_NUTS: Any = NUTS  # Pyro's samplers have no types


class RecordedNUTS(_NUTS):  # type: ignore[misc]
    r"""Pyro's NUTS, with statistics of each draw in ``MCMC.diagnostics()``.

    :func:`pyronorm.run_nuts` uses it. For a Pyro model of your own,
    ``MCMC(RecordedNUTS(model), ...)``; :func:`pyronorm.to_arviz` then exports beside ``diverging``

    * ``energy``: :math:`-\log p(z, y) + \frac12 r^\top M^{-1} r` in nats, at the start of the
      trajectory, along which it is constant but for the integrator's error; for ``az.bfmi`` and
      ``az.plot_energy``;
    * ``tree_depth``: number of doublings of the trajectory that were completed;
    * ``acceptance_rate``: mean acceptance probability along the trajectory.

    Args:
        args: those of ``pyro.infer.NUTS``.
        kwargs: those of ``pyro.infer.NUTS``.

    Source: Hoffman & Gelman, "The No-U-Turn Sampler" (JMLR 2014); the energy of Betancourt, "A
    Conceptual Introduction to Hamiltonian Monte Carlo" (2017).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trees: list[Any] = []
        self._within_tree = False
        self._energy = 0.0
        self._kept: dict[str, list[float]] = {name: [] for name in RECORDED}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Begin a chain."""
        self._kept = {name: [] for name in RECORDED}
        super().setup(warmup_steps, *args, **kwargs)

    def sample(self, params: Any) -> Any:
        """Take a step, and keep what is known of it after the warmup."""
        self._trees.clear()
        new = super().sample(params)
        if self._trees and self._t > self._warmup_steps:
            proposals = sum(tree.num_proposals for tree in self._trees)
            accepted = sum(float(tree.sum_accept_probs) for tree in self._trees)
            whole = [not tree.turning and not tree.diverging for tree in self._trees]
            values = (self._energy, sum(whole), accepted / proposals)
            for name, value in zip(RECORDED, values, strict=True):
                self._kept[name].append(value)
        return new

    def diagnostics(self) -> dict[str, Any]:
        """What Pyro says of the chain, and the statistics of each draw."""
        return {**super().diagnostics(), **{name: [*value] for name, value in self._kept.items()}}

    def _build_tree(self, *args: Any) -> Any:
        if self._within_tree:  # Pyro builds trees of trees
            return super()._build_tree(*args)
        self._within_tree = True
        try:
            tree = super()._build_tree(*args)
        finally:
            self._within_tree = False
        self._energy = float(args[-1])
        self._trees.append(tree)
        return tree
