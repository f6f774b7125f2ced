"""Draws of the latents: what every posterior gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyronorm.checks import Count, Natural, check_fields, checked
from pyronorm.devices import check_memory, device_of
from pyronorm.display import displayed
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.latents.network import LatentNetwork
from pyronorm.latents.space import LatentSpace
from pyronorm.latents.values import check_values
from pyronorm.randomness import Seed
from pyronorm.settings import load_value, save_value

__all__ = ["Draws", "HasLatents", "check_draws"]


@runtime_checkable
class HasLatents(Protocol):
    """What has latents to draw: a :class:`~pyronorm.NormalizationModel`, say."""

    @property
    def space(self) -> LatentSpace:
        """The space of the latents."""

    @property
    def network(self) -> LatentNetwork:
        """The network whose latents they are."""


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Draws:
    """Draws of the latents, in chains where a sampler made them.

    They are a posterior themselves: :func:`pyronorm.predict`, :func:`pyronorm.evaluate` and
    :func:`pyronorm.to_arviz` take them as they take a guide.

    Attributes:
        shift: shape ``(sample, channel)``.
        scale: shape ``(sample, channel)``.
        log_density: log density of each draw under the posterior it is from, in nats, shape
            ``(sample,)``; None where it has none (a bank, a point) or none is known (chains).
        hyper: hyperparameters of the prior by site name, each of shape ``(sample, group)``; empty
            where the prior has none or the posterior does not know them (a bank).
        num_chains: number of Markov chains. The draws of a chain lie together and all chains have
            the same length. Independent draws are one chain.
        stats: what the sampler said of each draw, by ArviZ's names (``diverging``, ``energy``,
            ``tree_depth``, ``acceptance_rate``), each of shape ``(sample,)``.
        others: values of sites that the network samples itself, such as weights with a prior of their
            own, by site name, each of shape ``(sample, *site)``.
        weights: a hash of the weights of the network that they belong to, which others are refused
            for; 0 for none in particular, ``dataclasses.replace(draws, weights=0)``.

    Raises:
        ShapeError: if the shapes disagree.
        OptionError: if there is no draw, or the chains are not equally long.
        DataError: if a latent is not finite, or a scale not above 0 (not looked at on a GPU).
    """

    shift: Tensor
    scale: Tensor
    log_density: Tensor | None = None
    hyper: Mapping[str, Tensor] = field(default_factory=dict)
    num_chains: Count = 1
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Natural = 0

    def __post_init__(self) -> None:
        check_fields(self)
        count = len(self.shift) if self.shift.ndim else 0
        if self.shift.ndim != 2 or self.shift.shape != self.scale.shape:
            raise ShapeError(
                "Draws: shift and scale must have one shape (sample, channel), got "
                f"{tuple(self.shift.shape)} and {tuple(self.scale.shape)}."
            )
        per_draw = {"log_density": self.log_density, **self.hyper, **self.stats, **self.others}
        for name, value in per_draw.items():
            if value is not None and (not value.ndim or len(value) != count):
                raise ShapeError(
                    f"Draws: {name} must have {count} values on axis 0, one per draw, got shape "
                    f"{tuple(value.shape)}."
                )
        if count < 1 or count % self.num_chains:
            raise OptionError(
                f"Draws: {count} draws do not form {self.num_chains} chains of equal length."
            )
        check_values("Draws", self.shift, self.scale)

    def __len__(self) -> int:
        """Number of draws, of all chains together."""
        return len(self.shift)

    @property
    def are_equal(self) -> bool:
        """Whether all draws are one: those of a point. Nothing is known of the latents' uncertainty."""
        return bool(((self.shift == self.shift[:1]) & (self.scale == self.scale[:1])).all())

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Draws:
        """Some of the draws, as one chain."""
        place = (
            index if isinstance(index, slice) else torch.as_tensor(index, device=self.shift.device)
        )
        return Draws(
            self.shift[place],
            self.scale[place],
            None if self.log_density is None else self.log_density[place],
            {name: value[place] for name, value in self.hyper.items()},
            1,
            {name: value[place] for name, value in self.stats.items()},
            {name: value[place] for name, value in self.others.items()},
            self.weights,
        )

    def __repr__(self) -> str:
        """Say how many there are, of what."""
        samples, channels = self.shift.shape
        chains = f", {self.num_chains} chains" if self.num_chains > 1 else ""
        known = [
            *self.hyper,
            *(["log_density"] if self.log_density is not None else []),
            *self.stats,
            *self.others,
        ]
        extra = f", with {', '.join(known)}" if known else ""
        return f"Draws({samples} draws of {channels} channels{chains}{extra}, {self.shift.device})"

    def _content(self) -> dict[str, Any]:
        """What there is, for notebooks."""
        named = {
            "shift": self.shift,
            "scale": self.scale,
            **self.hyper,
            **self.stats,
            **self.others,
        }
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        return {"draws": len(self), "chains": self.num_chains, **shapes}

    @classmethod
    @checked
    def join(cls, parts: Sequence[Draws]) -> Draws:
        """Put the chains of several runs side by side.

        Args:
            parts: draws with equally long chains. What is not known of all of them is left out. All
                are moved to the device of the first.

        Raises:
            OptionError: if there are none, or the chains are not equally long.
            ShapeError: if the numbers of channels differ.
        """
        parts = [part.to(parts[0].shift.device) for part in parts]
        lengths = {len(part) / part.num_chains for part in parts}
        if len(lengths) != 1:
            raise OptionError(
                f"Draws.join: chains of one length are needed, got lengths {sorted(lengths)}."
            )
        if len({part.shift.shape[1] for part in parts}) != 1:
            raise ShapeError("Draws.join: the draws are of networks with different channels.")
        known = [part.log_density for part in parts]
        densities = [x for x in known if x is not None]

        def joined(of: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {
                name: torch.cat([each[name] for each in of])
                for name in of[0]
                if all(name in each for each in of)
            }

        return cls(
            torch.cat([part.shift for part in parts]),
            torch.cat([part.scale for part in parts]),
            torch.cat(densities) if len(densities) == len(known) else None,
            joined([part.hyper for part in parts]),
            sum(part.num_chains for part in parts),
            joined([part.stats for part in parts]),
            joined([part.others for part in parts]),
            parts[0].weights if len({part.weights for part in parts}) == 1 else 0,
        )

    def unique(self) -> tuple[Tensor, Tensor, Tensor]:
        """The different draws: their shifts, their scales, and which of them each draw is.

        Draws with values of other sites are all different.
        """
        if self.others:
            each = torch.arange(len(self), device=self.shift.device)
            return self.shift, self.scale, each
        if not self.shift.shape[1]:  # of a plain network: nothing to draw
            index = torch.zeros(len(self), dtype=torch.long, device=self.shift.device)
            return self.shift[:1], self.scale[:1], index
        latents = torch.stack([self.shift, self.scale], dim=1)
        unique, index = torch.unique(latents, dim=0, return_inverse=True)
        return unique[:, 0], unique[:, 1], index

    @checked
    def to(self, like: Tensor | torch.device | str) -> Draws:
        """Move the draws to a device, or to the device and dtype of a tensor."""
        if isinstance(like, Tensor):
            device, dtype = like.device, like.dtype
        else:
            device, dtype = device_of("Draws.to", like), self.shift.dtype

        def move(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else value.dtype)

        density = self.log_density
        return Draws(
            move(self.shift),
            move(self.scale),
            None if density is None else density.to(device),
            {name: move(value) for name, value in self.hyper.items()},
            self.num_chains,
            {name: value.to(device) for name, value in self.stats.items()},
            {name: move(value) for name, value in self.others.items()},
            self.weights,
        )

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the draws to a safetensors file.

        Args:
            path: the file, as a rule ``*.safetensors``.

        Raises:
            FileError: if it cannot be written.
        """
        save_value(path, "draws", self)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Draws:
        """Load draws that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            FileError: if it is missing, damaged, of a later format, or holds something else.
        """
        return load_value(path, "draws", cls)

    @checked
    def draw(
        self, model: HasLatents, num_samples: Count, *, data: Any = None, seed: Seed = None
    ) -> Draws:
        """Take so many of the draws, evenly spaced, alike from every chain where that is possible.

        Args:
            model: the model whose latents these are.
            num_samples: how many; all of them at most.
            data: not used.
            seed: not used, nothing is random.

        Returns:
            The draws, on the model's device and in its dtype.

        Raises:
            OptionError: if there are not that many.
            ShapeError: if these are draws for another network.
            StatisticsError: if they belong to other weights than the network has.
        """
        model.space.check(self.shift, "Draws")
        if self.weights and self.weights != model.network.weights():
            raise StatisticsError(
                "Draws: they belong to other weights than the network has, and are relative to other "
                "statistics. Draw them again; or, if they are right as they are, take "
                "dataclasses.replace(draws, weights=0)."
            )
        if not 1 <= num_samples <= len(self):
            raise OptionError(
                f"Draws: num_samples must be between 1 and {len(self)}, the number of draws that there "
                f"are, got {num_samples}."
            )
        like = model.network.like
        if num_samples == len(self):
            return self.to(like)
        chains = self.num_chains if num_samples % self.num_chains == 0 else 1
        length = len(self) // chains
        within = torch.linspace(0, length - 1, num_samples // chains).round().long()
        index = (torch.arange(chains)[:, None] * length + within).flatten()
        some = self[index].to(like)
        return replace(some, num_chains=chains)


def check_draws(where: str, num_samples: int, space: LatentSpace, like: Tensor) -> None:
    """Refuse draws that there is no memory for, before they are made.

    Args:
        where: what draws, for the message.
        num_samples: how many.
        space: their channels.
        like: gives device and dtype.

    Raises:
        SizeError: with the bytes that are needed and that there are.
    """
    check_memory(
        f"{where}, {num_samples:,} draws of {space.num_channels:,} channels",
        2 * num_samples * space.num_channels,
        like,
        "Take fewer draws at a time.",
    )
