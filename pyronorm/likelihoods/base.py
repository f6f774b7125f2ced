"""What a likelihood is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from pyronorm.checks import Natural, checked
from pyronorm.devices import move
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods.curvature import expected_curvature
from pyronorm.likelihoods.later import require
from pyronorm.likelihoods.missing import Weighted, check_vectors, fill, mask_values
from pyronorm.likelihoods.mixture import conditional_mean, support_in_words, unwrap
from pyronorm.likelihoods.prediction import Prediction
from pyronorm.likelihoods.scores import Scores, score
from pyronorm.settings import arguments_of, settings_in_words

if TYPE_CHECKING:
    from pyronorm.likelihoods.function import Function

__all__ = ["Likelihood", "check_axes", "per_example"]

_SAMPLES = 1024  # of the data, where something has no closed form
_ELEMENTS = 2**24  # of the largest intermediate result


class Likelihood(nn.Module, ABC):
    r"""Maps outputs of a network to distributions of the data, one per example.

    Outputs have the shape ``(*samples, batch, *out)``. What ``out`` is, the subclass says; whatever
    lies beyond a single value per example (pixels, several targets) are event dimensions, so that
    each example has one log likelihood. A likelihood of your own says :meth:`distribution` and
    nothing else::

        class Poisson(pn.likelihoods.Likelihood):
            def distribution(self, output, num_sample_dims=0):
                counts = dist.Poisson(output.exp())
                return pn.likelihoods.per_example(counts, num_sample_dims)

    or, without a class, :meth:`of`. Means, entropies, intervals, metrics and the export to ArviZ
    come from the distribution.

    **Missing data.** NaN among floating point data is a missing value, and so is
    :attr:`ignore_index` among classes. A missing value has no part in log likelihoods, gradients and
    metrics; an example without any value has log likelihood 0. It still counts as one of the
    model's ``num_data`` examples, so that mini-batches stay unbiased.
    """

    ignore_index: int | None = None
    """The class that stands for a missing one; None if classes are never missing."""

    ordered: bool = False
    """Whether classes have an order, and so quantiles."""

    marginalizes: bool = False
    """Whether :meth:`observe` knows vectors that are missing in part."""

    @abstractmethod
    def distribution(self, output: Tensor, num_sample_dims: Natural = 0) -> TorchDistributionMixin:
        """The distribution of ``y``.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.

        Returns:
            A distribution with batch shape ``(*samples, batch)``; :func:`per_example` gives independent
            values that shape.

        Raises:
            ShapeError: if ``output`` does not have the axes this likelihood needs.
        """

    @property
    def learned(self) -> bool:
        """Whether there are parameters to learn."""
        return any(True for _ in self.parameters())

    def settings(self) -> dict[str, Any]:
        """The arguments that made it, read off attributes of the same names.

        A saved model has these and the state: ``type(likelihood)(**likelihood.settings())`` and then
        ``load_state_dict``.

        Raises:
            OptionError: if a likelihood of your own does not keep one of its arguments.
        """
        return arguments_of(self, type(self).__name__)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``, where they are kept."""
        try:
            return settings_in_words(self.settings())
        except OptionError:
            return ""

    @staticmethod
    @checked
    def of(function: Callable[[Tensor], Distribution]) -> Function:
        """A likelihood from a function of the output.

        ``Likelihood.of(lambda output: dist.Poisson(output.exp()))``

        Args:
            function: gives the distribution of each value, of batch shape ``(*samples, batch,
                ...)``. It sees outputs with and without sample axes in front, so it works element
                by element, or counts axes from the last.
        """
        from pyronorm.likelihoods.function import Function

        return Function(function)

    def tempered(self, temperature: float | Tensor) -> Likelihood:
        """The likelihood at a temperature, wider above 1: see :class:`~pyronorm.likelihoods.Tempered`.

        Args:
            temperature: positive, as :func:`pyronorm.diagnostics.fit_temperature` finds it.

        Raises:
            OptionError: if it is not positive and finite.
        """
        from pyronorm.likelihoods.tempered import Tempered

        return Tempered(self, temperature)

    @checked
    def expected(self, output: Tensor, num_sample_dims: Natural = 0) -> Tensor:
        """The mean of ``y`` given the latents (probabilities, for classes), without noise.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.
        """
        return conditional_mean(self.distribution(output, num_sample_dims))

    @checked
    def predict(self, output: Tensor, *, keep_samples: bool = True) -> Prediction:
        """The predictive distribution: the mixture over draws.

        Args:
            output: outputs of several draws, shape ``(sample, batch, *out)``.
            keep_samples: whether to keep the outputs; without them there are summaries alone.
        """
        return Prediction.of(self, output, keep_samples=keep_samples)

    @torch.no_grad()
    @checked
    def scores(self, output: Tensor, y: Tensor, weight: Tensor | None = None) -> Scores:
        """Score the predictive distribution by data: what metrics are means of.

        Args:
            output: outputs of several draws, shape ``(sample, batch, *out)``.
            y: the data, shape ``(batch, *event)``.
            weight: how often each example counts, shape ``(batch,)``; None for once.

        Raises:
            ShapeError: if shapes disagree.
            DataError: if values are impossible.
        """
        y = move(y, output.device)
        self.check_data(y, output, 1)
        parts = self.parts(output)
        sizes = [part.shape[1] for part in parts]
        if weight is not None and weight.shape != y.shape[:1]:
            raise ShapeError(
                f"{type(self).__name__}: weight must have the shape ({len(y)},), one per example, got "
                f"{tuple(weight.shape)}."
            )
        weights = [None] * len(parts) if weight is None else weight.split(sizes)
        found = zip(parts, y.split(sizes), weights, strict=True)
        return Scores.join([score(self, *part) for part in found])

    def parts(self, output: Tensor) -> list[Tensor]:
        """Outputs of so many examples at once that 1024 samples of their data fit in memory.

        Args:
            output: outputs of several draws, shape ``(sample, batch, *out)``.
        """
        if output.ndim < 2:
            raise ShapeError(
                f"{type(self).__name__}: expected outputs of shape (sample, batch, ...), got "
                f"{tuple(output.shape)}, which is short of the batch with 1 sample axes in front."
            )
        values = max(1, self.distribution(output[:, :1], 1).event_shape.numel())
        return list(output.split(max(1, _ELEMENTS // (_SAMPLES * values)), 1))

    def present(self, y: Tensor) -> Tensor:
        """Which examples have an observed value, shape ``(batch,)``."""
        observed = self.observed(y)
        if observed is None:
            return torch.ones(len(y), dtype=torch.bool, device=y.device)
        return observed.reshape(len(y), -1).any(1)

    def observed(self, y: Tensor) -> Tensor | None:
        """Which values are observed: a mask of the shape of ``y``, or None where none can miss."""
        if y.is_floating_point():
            return ~y.isnan()
        return None if self.ignore_index is None else y != self.ignore_index

    def weights(self, y: Tensor) -> Tensor | None:
        """How often each value counts in the objective of training, ``y``'s shape; None for once.

        Metrics and exports are of data that count once.
        """
        return None

    def observe(
        self, output: Tensor, y: Tensor, num_sample_dims: Natural = 0
    ) -> tuple[TorchDistributionMixin, Tensor]:
        """The distribution of the values that are observed.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            y: the data, shape ``(batch, *event)``.
            num_sample_dims: the number of axes in ``samples``.

        Returns:
            The distribution, with missing values masked, and ``y`` with a possible value in their place:
            the log density of the one under the other is that of the observed values.
        """
        distribution = self.distribution(output, num_sample_dims)
        observed = self.observed(y)
        if not isinstance(unwrap(distribution), Categorical) and not y.is_floating_point():
            y = y.to(output.dtype)
        if observed is None:
            return distribution, y
        masked = mask_values(distribution, observed)
        return masked, fill(distribution, y, observed)

    def objective(
        self, output: Tensor, y: Tensor, num_sample_dims: Natural = 0, weight: Tensor | None = None
    ) -> tuple[TorchDistributionMixin, Tensor]:
        """As :meth:`observe`, with log densities that count as often as training wants.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            y: the data, shape ``(batch, *event)``.
            num_sample_dims: the number of axes in ``samples``.
            weight: how often each example counts, ``(batch,)``, beside the :meth:`weights` of values.
        """
        distribution: Any
        distribution, filled = self.observe(output, y, num_sample_dims)
        weights = self.weights(y)
        if weights is not None:
            base = unwrap(distribution)
            values = len(distribution.event_shape) - len(base.event_shape)
            distribution = Weighted(base, weights).to_event(values)  # type: ignore[no-untyped-call]
        if weight is not None:
            distribution = Weighted(distribution, weight)
        return distribution, filled

    def total(
        self, output: Tensor, y: Tensor, num_sample_dims: int = 0, weight: Tensor | None = None
    ) -> Tensor:
        """The sum of the log densities of :meth:`objective`, of all examples and draws."""
        observed, value = self.objective(output, y, num_sample_dims, weight)
        total: Tensor = observed.log_prob(value).sum()
        return total

    def check_training(
        self, y: Tensor, output: Tensor, num_sample_dims: int = 0, *, values: bool = True
    ) -> None:
        """As :meth:`check_data`, for :meth:`objective`, which may take more (soft labels)."""
        self.check_data(y, output, num_sample_dims, values=values)

    @checked
    def log_prob(self, output: Tensor, y: Tensor, num_sample_dims: Natural = 0) -> Tensor:
        """Log likelihood of each example, ``(*samples, batch)``: 0 where nothing is observed.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            y: the data, shape ``(batch, *event)``.
            num_sample_dims: the number of axes in ``samples``.

        Raises:
            ShapeError: if shapes disagree.
            DataError: if values are impossible.
        """
        self.check_data(y, output, num_sample_dims)
        distribution, y = self.observe(output, y, num_sample_dims)
        return distribution.log_prob(y)  # type: ignore[no-any-return]

    def curvature(self, output: Tensor) -> Tensor:
        r"""The expected curvature of the negative log likelihood in the output, of each example.

        The Fisher information :math:`-\mathbb E_{y \sim p(y|f)} \nabla_f^2 \log p(y|f)`, as the Hessian
        of :math:`\mathrm{KL}(p(\cdot|f)\,\Vert\,p(\cdot|f'))` in :math:`f'` at :math:`f`: exact where
        torch knows the divergence.

        Args:
            output: shape ``(batch, out)``.

        Returns:
            Shape ``(batch, out, out)``.

        Raises:
            OptionError: if torch does not know the divergence.
            ShapeError: if ``output`` has another number of axes.
        """
        return expected_curvature(self, output)

    def check_data(
        self, y: Tensor, output: Tensor, num_sample_dims: Natural = 0, *, values: bool = True
    ) -> None:
        """Refuse data that the output cannot be a distribution of.

        Args:
            y: the data, shape ``(batch, *event)``.
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.
            values: also look at the values, which waits for the device.

        Raises:
            ShapeError: if shapes disagree; nothing is broadcast.
            DataError: if values are impossible.
        """
        where = type(self).__name__
        distribution = self.distribution(output, num_sample_dims)
        batch = output.shape[: num_sample_dims + 1]
        if distribution.batch_shape != batch:
            raise ShapeError(
                f"{where}: the distribution of an output of shape {tuple(output.shape)} must have the "
                f"batch shape {tuple(batch)}, got {tuple(distribution.batch_shape)}. Return "
                "pyronorm.likelihoods.per_example(distribution, num_sample_dims)."
            )
        expected = batch[-1:] + distribution.event_shape
        if y.shape != expected:
            raise ShapeError(
                f"{where}: the network's output of shape {tuple(output.shape)} describes y of shape "
                f"{tuple(expected)}, got y of shape {tuple(y.shape)}."
            )
        base = unwrap(distribution)
        wanted = None
        if isinstance(base, Categorical) and (y.is_floating_point() or y.dtype == torch.bool):
            wanted = "integers"
        elif not y.is_floating_point() and not base.support.is_discrete:
            wanted = "floating point numbers"
        if wanted is not None or y.is_complex():
            raise DataError(f"{where}: y must be {wanted or 'real'}, got {y.dtype}.")
        if not values:
            return
        observed = self.observed(y)
        filled = y
        if observed is not None:
            if not self.marginalizes:
                check_vectors(distribution, observed, where)
            filled = fill(distribution, y, observed)

        def error() -> DataError:
            kept = filled[filled.isfinite()] if observed is None else y[observed & y.isfinite()]
            span = f"{kept.min():g} to {kept.max():g}" if kept.numel() else "none"
            return DataError(
                f"{where}: y has values outside of the support, {support_in_words(distribution)}, or "
                f"not finite. The finite ones range from {span}."
            )

        require(distribution.support.check(filled).all() & filled.isfinite().all(), error)


@checked
def per_example(
    distribution: TorchDistributionMixin, num_sample_dims: Natural = 0
) -> TorchDistributionMixin:
    """Declare all axes after the batch to be event dimensions: one log density per example.

    Args:
        distribution: with batch shape ``(*samples, batch, *rest)``.
        num_sample_dims: the number of axes in ``samples``.

    Returns:
        A distribution with batch shape ``(*samples, batch)``, whose values in ``rest`` are independent.

    Raises:
        ShapeError: if there is no batch axis.
    """
    rest = len(distribution.batch_shape) - num_sample_dims - 1
    if rest < 0:
        raise ShapeError(
            f"per_example: expected a distribution of batch shape (*samples, batch, ...), got "
            f"{tuple(distribution.batch_shape)} with {num_sample_dims} sample axes in front."
        )
    return distribution.to_event(rest)  # type: ignore[no-any-return]


def check_axes(where: str, output: Tensor, num_sample_dims: Natural, at_least: int) -> None:
    """Refuse an output with fewer axes per example than the likelihood needs."""
    if output.ndim - num_sample_dims - 1 < at_least:
        raise ShapeError(
            f"{where}: expected an output of shape (batch, {'class, ' if at_least else ''}...), got "
            f"{tuple(output.shape)} with {num_sample_dims} sample axes in front."
        )
