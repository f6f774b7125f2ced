"""Joint batch statistics of all layers for many batches: the implicit posterior of batch noise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, Probability, check_fields, checked
from pyronorm.devices import device_of
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError, StatisticsError
from pyronorm.latents import Draws, HasLatents, LatentNetwork, LatentSpace, Per
from pyronorm.randomness import Seed
from pyronorm.settings import load_value, save_value
from pyronorm.stats.effective_batch_size import EffectiveBatchSizes, effective_batch_size

__all__ = ["StatisticsBank"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class StatisticsBank:
    r"""Statistics of random training batches, all layers of a batch in one row.

    Layer ``k + 1`` of a row saw layer ``k`` normalized by the same batch, so a row is a joint draw of
    what batch normalization does in training. Collected by :func:`pyronorm.collect_bank`.

    Attributes:
        space: the layers and channels of the network.
        batch_size: examples per batch.
        mean: batch means :math:`M`, shape ``(row, channel)``; NaN for layers without batch
            statistics.
        var: *biased* batch variances :math:`S^2`, shape ``(row, channel)``.
        reference_mean: population means :math:`\mu`, shape ``(channel,)``.
        reference_var: population variances :math:`\sigma^2`, shape ``(channel,)``.
        eps: what each channel's layer adds to a variance, shape ``(channel,)``.
    """

    space: LatentSpace
    batch_size: Count
    mean: Float[Tensor, "row channel"]
    var: Float[Tensor, "row channel"]
    reference_mean: Float[Tensor, " channel"]
    reference_var: Float[Tensor, " channel"]
    eps: Float[Tensor, " channel"]

    def __post_init__(self) -> None:
        check_fields(self)
        self.space.check(self.mean, "StatisticsBank")
        if len(self.mean) < 1 or self.mean.shape != self.var.shape:
            raise ShapeError(
                "StatisticsBank: mean and var must have one shape (row, channel) with at least one "
                f"row, got {tuple(self.mean.shape)} and {tuple(self.var.shape)}."
            )
        for name in ("reference_mean", "reference_var", "eps"):
            self.space.check(getattr(self, name), f"StatisticsBank, {name}")
        self._check_values()

    def _check_values(self) -> None:
        """Refuse what is not finite, but for layers without batch statistics, whose columns are NaN."""
        means = {"mean": self.mean, "reference_mean": self.reference_mean}
        variances = {"var": self.var, "reference_var": self.reference_var, "eps": self.eps}
        unknown = self.mean.isnan().all(0)
        good = [
            (~value.isinf() & (~value.isnan() | unknown) & ~(value < least)).all()
            for some, least in ((means, -math.inf), (variances, 0.0))
            for value in some.values()
        ]
        for name, fine in zip((*means, *variances), torch.stack(good).tolist(), strict=True):
            if not fine:
                rule = "finite" if name in means else "finite and not negative"
                raise DataError(
                    f"StatisticsBank: {name} must be {rule}; a layer without batch statistics has NaN "
                    "in all rows."
                )

    @classmethod
    @checked
    def neutral(cls, space: LatentSpace, rows: Count) -> StatisticsBank:
        """A bank whose rows are all neutral: shift 0 and scale 1.

        Args:
            space: the layers and channels.
            rows: number of rows.
        """
        unknown = torch.full((space.num_channels,), torch.nan)  # of no weights: it fits all
        each = unknown.expand(rows, -1)
        return cls(space, 1, each, each, unknown, unknown, unknown)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.mean)

    def __repr__(self) -> str:
        """Say how many rows there are, of what."""
        return (
            f"StatisticsBank({len(self)} rows, batches of {self.batch_size}, "
            f"{self.space.num_channels} channels of {len(self.space.layers)} layers, {self.mean.device})"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The layers, for notebooks."""
        parts = [self.space.unpack(v) for v in (self.shift, self.scale)]
        names = list(self.space.names)
        return {
            "layer": names,
            "channels": list(self.space.sizes),
            "std of shift": [
                float(parts[0][name].std(0, correction=0).square().mean().sqrt()) for name in names
            ],
            "std of scale": [
                float(parts[1][name].std(0, correction=0).square().mean().sqrt()) for name in names
            ],
        }

    @property
    def shift(self) -> Float[Tensor, "row channel"]:
        r""":math:`(\mu - M)/\sqrt{\sigma^2 + \epsilon}`; 0 for layers without batch statistics."""
        shift = (self.reference_mean - self.mean) / (self.reference_var + self.eps).sqrt()
        return torch.nan_to_num(shift, nan=0.0)

    @property
    def scale(self) -> Float[Tensor, "row channel"]:
        r""":math:`\sqrt{(\sigma^2 + \epsilon)/(S^2 + \epsilon)}`; 1 without batch statistics."""
        scale = ((self.reference_var + self.eps) / (self.var + self.eps)).sqrt()
        return torch.nan_to_num(scale, nan=1.0)

    @checked
    def effective_batch_size(
        self, per: Per | str = Per.LAYER, confidence: Probability = 0.95
    ) -> EffectiveBatchSizes:
        r"""How many independent Gaussian values would scatter as much as the rows.

        Maximum likelihood under the law of batch noise, from shift and scale together
        (:func:`pyronorm.stats.effective_batch_size`); ``inf`` for layers without batch statistics.
        It averages what means and variances say; where they disagree no single ``n`` describes the
        noise, which :func:`pyronorm.diagnostics.moment_batch_sizes` shows.

        Args:
            per: what has an effective batch size of its own.
            confidence: nominal coverage of each interval. It assumes independent rows; those of
                one pass over the data without replacement depend on each other a little.

        Returns:
            Estimates and intervals, in the order of ``per.labels(bank.space)``.

        Raises:
            OptionError: if the bank has a single row.
        """
        unknown = self.mean.isnan()
        shift, scale = (torch.where(unknown, torch.nan, x) for x in (self.shift, self.scale))
        return effective_batch_size(shift, scale, Per.of(per).groups(self.space), confidence)

    @checked
    def to(self, like: Tensor | torch.device | str) -> StatisticsBank:
        """Move the bank to a device, or to the device and dtype of a tensor."""
        like = like if isinstance(like, Tensor) else device_of("StatisticsBank.to", like)
        tensors = ("mean", "var", "reference_mean", "reference_var", "eps")
        return replace(self, **{name: getattr(self, name).to(like) for name in tensors})

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the bank to a safetensors file.

        Args:
            path: the file, as a rule ``*.safetensors``.

        Raises:
            FileError: if it cannot be written.
        """
        save_value(path, "bank", self)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> StatisticsBank:
        """Load a bank that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            FileError: if it is missing, damaged, of a later format, or holds something else.
        """
        return load_value(path, "bank", cls)

    @checked
    def draw(
        self, model: HasLatents, num_samples: Count, *, data: Any = None, seed: Seed = None
    ) -> Draws:
        """Take so many rows, evenly spaced, each at most once.

        :class:`pyronorm.guides.MonteCarloBatchNorm` draws rows at random, with replacement.

        Args:
            model: the model whose latents these are.
            num_samples: how many; all of them at most.
            data: not used.
            seed: not used, nothing is random.

        Returns:
            The draws, without a density, on the model's device and in its dtype.

        Raises:
            OptionError: if there are not that many.
            ShapeError: if the bank belongs to another network.
            StatisticsError: if it belongs to other weights.
        """
        self.check(model.space, "StatisticsBank")
        self.check_weights(model, "StatisticsBank")
        if not 1 <= num_samples <= len(self):
            raise OptionError(
                f"StatisticsBank: num_samples must be between 1 and {len(self)}, the number of rows, "
                f"got {num_samples}. Collect more batches, or take the guide MonteCarloBatchNorm, which "
                "draws rows with replacement."
            )
        return Draws(self.shift, self.scale).draw(model, num_samples)

    def check(self, space: LatentSpace, where: str, rows: Count = 1) -> None:
        """Refuse a bank of another network, or one with too few rows.

        Raises:
            ShapeError: if the layers are not those of ``space``.
            OptionError: if there are fewer than ``rows`` rows.
            DataError: if values have been changed since, to impossible ones.
        """
        self._check_values()
        mine = [(x.name, x.num_channels) for x in self.space.layers]
        theirs = [(x.name, x.num_channels) for x in space.layers]
        if mine != theirs:
            raise ShapeError(
                f"{where}: the bank belongs to another network; it has the layers {mine}, the model "
                f"has {theirs}."
            )
        if len(self) < rows:
            raise OptionError(
                f"{where}: needs a bank of at least {rows} rows, got {len(self)}; collect more with "
                "pyronorm.collect_bank(..., num_batches=...)."
            )

    def check_weights(self, model: HasLatents | LatentNetwork, where: str) -> None:
        """Refuse a bank whose rows are relative to other population statistics than the network's.

        Layers that keep none of their own, or whose are missing, have nothing to compare with.

        Raises:
            StatisticsError: naming the first layer concerned.
        """
        network = model if isinstance(model, LatentNetwork) else model.network
        sizes = self.space.sizes
        means, variances = self.reference_mean.split(sizes), self.reference_var.split(sizes)
        for layer, mean, var in zip(network.layers, means, variances, strict=True):
            kept = layer.normalizer.keeps_population
            if not kept or (layer.normalizer.uses_batch and layer.statistics_stamp is None):
                continue
            now = (layer.state("running_mean"), layer.state("running_var"))
            same = (
                torch.allclose(a.to(b), b, rtol=1e-5, atol=1e-7)
                for a, b in zip((mean, var), now, strict=True)
                if not bool(a.isnan().any())
            )
            if not all(same):
                raise StatisticsError(
                    f"{where}: the bank is of other weights than the network has now; the population "
                    f"statistics of {layer.name} are not those that its rows are relative to. Collect "
                    "it again, pyronorm.collect_bank(network, train_data)."
                )
