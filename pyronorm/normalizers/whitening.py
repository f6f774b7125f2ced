"""Statistics of groups of channels together: batch whitening and group whitening."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm.checks import Count, NotNegative
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each, full_precision
from pyronorm.stats import InverseRoot, Moments, Newton, centre_and_covary

__all__ = ["BatchWhitening", "GroupWhitening"]


@dataclass(frozen=True)
class BatchWhitening(Normalizer):
    r"""Batch statistics that decorrelate groups of channels, population statistics in evaluation.

    The vector :math:`x` of ``channels_per_group`` consecutive channels, at one position of one
    example, becomes

    .. math::
        \hat x = \Sigma^{-1/2} (x - \mu), \qquad
        y = \text{weight} \cdot \text{scale} \cdot (\hat x + \text{shift}) + \text{bias}

    with :math:`\mu` and :math:`\Sigma` mean and biased covariance (plus ``eps`` on the diagonal) over
    the batch and all positions; the latents act on the whitened channels. Affine map and whitening
    are one matrix per group. With one channel per group this is :class:`Batch`.

    In evaluation mode the statistics are those of the population. The layer keeps ``running_mean`` and
    ``running_cov``, and takes the inverse root of the latter at each call, which is cheap beside the
    activations; so what is kept does not depend on ``whiten`` or ``eps``. As with :class:`Batch` no
    forward pass moves them: :func:`pyronorm.estimate_population_statistics` does. (A network cast to
    half precision rounds ``running_cov``; the size of the rounding errors is then added to its
    diagonal. Under autocast all of it stays in float32.)

    The batch noise of whitening, :math:`\Sigma_B^{-1/2} \Sigma^{1/2}`, turns and mixes channels. It is
    not a shift and a scale, so :func:`pyronorm.collect_bank` refuses it. Explicit guides act on it as
    on any normalizer.

    Args:
        channels_per_group: how many channels are whitened together; divides the number of channels.
            More need more values per batch, at least ``channels_per_group + 1``, and a multiple of
            that to be of use.
        whiten: how to take the inverse root, :class:`~pyronorm.stats.Newton` or
            :class:`~pyronorm.stats.Eigen`.
        eps: positive, added to the variances; None takes the converted layer's own.

    Source: Huang, Yang, Lang & Deng, "Decorrelated Batch Normalization" (CVPR 2018), with ``Eigen()``;
    Huang, Zhou, Zhu, Liu & Shao, "Iterative Normalization" (CVPR 2019), with ``Newton()``.

    Departs from the papers: population statistics are mean and covariance of all data instead of a
    running average, in "Iterative Normalization" one of whitening matrices.
    """

    channels_per_group: Count
    whiten: InverseRoot = field(default_factory=Newton)
    eps: NotNegative | None = None
    uses_batch: ClassVar[bool] = True

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """``running_mean``, ``running_cov`` (groups, dim, dim) and ``num_batches_tracked``."""
        _refuse_no_eps("BatchWhitening", self.eps)
        dim = self.channels_per_group
        if num_channels % dim:
            raise OptionError(
                f"BatchWhitening: channels_per_group={dim} does not divide {num_channels} channels."
            )
        return {
            "running_mean": torch.zeros(num_channels),
            "running_cov": torch.eye(dim).repeat(num_channels // dim, 1, 1),
            "num_batches_tracked": torch.tensor(0, dtype=torch.long),
        }

    @property
    def least_batch_size(self) -> int:
        """One more than there are channels in a group: fewer have a covariance without full rank."""
        return self.channels_per_group + 1

    def population(self, moments: Moments) -> dict[str, Tensor]:
        """Mean and covariances."""
        assert moments.cov is not None
        return {"running_mean": moments.mean, "running_cov": moments.cov}

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Whiten with the batch (training mode) or the population (evaluation mode)."""
        return self._whiten(layer, x, weight, bias).to(x.dtype)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map per example."""
        return affine_each(self._whiten(layer, x, None, None), weight, bias).to(x.dtype)

    def _whiten(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        dim = self.channels_per_group
        groups = x.shape[1] // dim
        # The batch joins the positions where they are few, so that there are few and large matrix
        # products, and where channels are innermost in memory, so that it is a view.
        join = math.prod(x.shape[2:]) < dim or x.stride(1) == 1
        with full_precision(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            if join:
                rows = wide.movedim(1, 0).flatten(1).unflatten(0, (1, groups, dim))
            else:
                rows = wide.flatten(2).unflatten(1, (groups, dim))
            if layer.training:
                rows, root = self._of_batch(layer, rows, tuple(x.shape))
            else:
                root = self._of_population(layer, rows)
            matrix = root if weight is None else _column(weight, root) * root
            offset = None if bias is None else _column(bias, root)
            if not layer.training:
                from_mean = -matrix @ _column(layer.state("running_mean"), root)
                offset = from_mean if offset is None else offset + from_mean
            y = matrix @ rows if offset is None else matrix @ rows + offset
            if join:
                y = y.flatten(0, 2).unflatten(1, (x.shape[0], *x.shape[2:])).movedim(0, 1)
            return _laid_out_like(x, y.reshape(x.shape))

    def _of_batch(
        self, layer: LatentNorm, rows: Tensor, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Centre, and take the inverse root of the covariances of the batch."""
        count = rows.shape[0] * rows.shape[3]
        if count <= self.channels_per_group:
            raise ShapeError(
                f"{layer.name}: the covariance of {self.channels_per_group} channels needs at least "
                f"{self.channels_per_group + 1} values per channel in a batch, got {count} (input of "
                f"shape {shape}). Use a larger batch, a smaller channels_per_group, or evaluation mode."
            )
        centred, mean, cov = centre_and_covary(rows)
        if layer.recorder is not None:
            var = cov.detach().diagonal(dim1=1, dim2=2).flatten()
            layer.recorder(layer, Moments(count, mean.detach().flatten(), var, cov.detach()))
        return centred, _inverse_root(layer, self.whiten, cov)

    def _of_population(self, layer: LatentNorm, rows: Tensor) -> Tensor:
        kept = layer.state("running_cov")
        cov = kept.to(rows.dtype)
        if kept.dtype in (torch.float16, torch.bfloat16):
            # Rounded so far, a covariance need not be positive definite any more; with the largest
            # error that rounding can have made on the diagonal it is.
            error = torch.finfo(kept.dtype).eps / 2 * torch.linalg.matrix_norm(cov)
            cov = cov + error[:, None, None] * torch.eye(cov.shape[-1], device=cov.device)
        return _inverse_root(layer, self.whiten, cov)


@dataclass(frozen=True)
class GroupWhitening(Normalizer):
    r"""Whitening of each example for itself: groups of channels are decorrelated from each other.

    An example with ``C`` channels and ``P`` positions is read as a matrix
    :math:`X` of ``num_groups`` rows: row ``g`` holds the ``C / num_groups`` consecutive channels of
    group ``g`` at all positions, :math:`m = P C / \text{num\_groups}` values. Then

    .. math::
        \hat X = \Sigma^{-1/2} (X - \mu 1^\top), \qquad \mu = \tfrac1m X 1, \qquad
        \Sigma = \tfrac1m (X - \mu 1^\top)(X - \mu 1^\top)^\top + \epsilon

    with mean and covariance along the rows: one mean per group, as in :class:`Group`, and a
    covariance *between* groups, where :class:`Group` has their variances. :math:`\hat X` is read as
    channels and positions again, and weight, bias and latents act per channel. There are no batch
    statistics, so training and evaluation mode are the same. With one group this is
    :class:`Layer` of a channel-first input.

    Args:
        num_groups: number of groups; divides the number of channels. An example needs more than
            ``num_groups`` values per group.
        whiten: how to take the inverse root, :class:`~pyronorm.stats.Newton` or
            :class:`~pyronorm.stats.Eigen`.
        eps: positive, added to the variances; None takes the converted layer's own.

    Source: Huang, Zhou, Liu, Zhu & Shao, "Group Whitening: Balancing Learning Efficiency and
    Representational Capacity" (CVPR 2021).
    """

    num_groups: Count
    whiten: InverseRoot = field(default_factory=Newton)
    eps: NotNegative | None = None

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """None; checks that the groups divide the channels."""
        _refuse_no_eps("GroupWhitening", self.eps)
        if num_channels % self.num_groups:
            raise OptionError(
                f"GroupWhitening: num_groups={self.num_groups} does not divide {num_channels} "
                "channels."
            )
        return {}

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Whiten each example."""
        y = self._whiten(layer, x)
        if weight is not None or bias is not None:
            # The channels of a group share a row of the matrix, so their affine maps do not fold.
            one, zero = y.new_ones(1, layer.num_channels), y.new_zeros(1, layer.num_channels)
            y = affine_each(
                y, one if weight is None else weight[None], zero if bias is None else bias[None]
            )
        return y.to(x.dtype)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Whiten each example, then apply its affine map."""
        return affine_each(self._whiten(layer, x), weight, bias).to(x.dtype)

    def _whiten(self, layer: LatentNorm, x: Tensor) -> Tensor:
        values = math.prod(x.shape[1:]) // self.num_groups
        if values <= self.num_groups:
            raise ShapeError(
                f"{layer.name}: the covariance of {self.num_groups} groups needs at least "
                f"{self.num_groups + 1} values per group in an example (channels times positions), "
                f"got {values} (input of shape {tuple(x.shape)}). Use a smaller num_groups."
            )
        with full_precision(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            centred, _, cov = centre_and_covary(wide.reshape(1, len(x), self.num_groups, values))
            y = _inverse_root(layer, self.whiten, cov) @ centred
            return _laid_out_like(x, y.view(x.shape))


def _column(vector: Tensor, root: Tensor) -> Tensor:
    """One column per group: (channel,) as (group, dim, 1)."""
    return vector.to(root.dtype).view(*root.shape[:2], 1)


def _refuse_no_eps(kind: str, eps: NotNegative | None) -> None:
    if eps is not None and eps <= 0:
        raise OptionError(
            f"{kind}: eps must be positive, got {eps}: constant or dependent channels have a covariance "
            "without an inverse."
        )


def _inverse_root(layer: LatentNorm, whiten: InverseRoot, cov: Tensor) -> Tensor:
    one = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    try:
        return whiten(cov + layer.eps * one)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # eigh of NaN
        raise StatisticsError(
            f"{layer.name}: the covariance has no eigendecomposition, so its inputs are not finite. "
            "Check the data and whether training has diverged."
        ) from error


def _laid_out_like(x: Tensor, y: Tensor) -> Tensor:
    """Give ``y`` the memory format of ``x``: channels innermost, or positions."""
    if x.stride(1) == 1:
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()
