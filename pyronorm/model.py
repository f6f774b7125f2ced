"""The Pyro model: latents from a prior, a pure network, a likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.distributions import transform_to

from pyronorm.checks import Count, checked
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.inputs import EXAMPLES_FIRST, Output, is_one_piece, num_examples
from pyronorm.latents import LatentNetwork, LatentSpace
from pyronorm.latents.handlers import (
    refuse_another_network,
    refuse_lifted,
    runs_under,
    states_parameters,
)
from pyronorm.likelihoods import Likelihood
from pyronorm.likelihoods.later import require
from pyronorm.priors import BatchNoise, Prior

__all__ = ["NormalizationModel", "init_to_neutral", "sample_latents"]


@checked
def sample_latents(
    network: LatentNetwork, prior: Prior
) -> tuple[Float[Tensor, "*draws channel"], Float[Tensor, "*draws channel"]]:
    r"""Sample the latents of a network, inside a Pyro model of your own.

    Two packed sites, ``shift`` and ``scale`` (with the network's prefix in front), hold all channels
    of all layers; the hyperparameters of a prior that has some are sites before them. Pass them on to
    the network::

        decoder = pn.LatentNetwork(pn.convert(decoder), prefix="decoder.")

        def model(x):
            pyro.module("decoder", decoder)
            shift, scale = pn.sample_latents(decoder, pn.priors.BatchNoise(64))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", ...)
                pyro.sample("x", dist.Bernoulli(logits=decoder(z, shift, scale)).to_event(1), obs=x)

    Args:
        network: the network whose latents to sample.
        prior: their prior, such as ``pn.priors.BatchNoise(len(data))``.

    Returns:
        ``shift`` and ``scale``, each of shape ``(channel,)``, with the plates around the call in
        front.

    Raises:
        OptionError: if SVI would train the parameters of another network by the same names in Pyro's
            store; or if handlers sample the network's parameters (``poutine.lift``).
    """
    refuse_lifted(network)
    refuse_another_network(network)
    return prior.sample(network.space, network.like)


def init_to_neutral(site: dict[str, object]) -> Tensor:
    r"""Start a Pyro autoguide or NUTS at the neutral latents, without drawing from the prior.

    ``shift = 0`` and ``scale = 1``: the network as it is. Hyperparameters of a prior start at their
    mean, other sites at the zero of their unconstrained space. Use it as
    ``AutoNormal(model, init_loc_fn=pn.init_to_neutral)`` or
    ``NUTS(model, init_strategy=pn.init_to_neutral)``. Autoguides need it for
    improper priors, where Pyro's NUTS does not start at all: take :func:`pyronorm.run_nuts`.

    Args:
        site: a Pyro sample site.
    """
    fn = base = site["fn"]
    infer = site["infer"]
    if isinstance(infer, dict) and "neutral" in infer:
        start: Tensor = infer["neutral"].expand(fn.batch_shape + fn.event_shape)  # type: ignore[attr-defined]
        return start.clone()
    while hasattr(base, "base_dist"):
        base = base.base_dist
    like = next((v for v in vars(base).values() if isinstance(v, Tensor)), torch.empty(0))
    transform = transform_to(fn.support)  # type: ignore[attr-defined]
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)  # type: ignore[attr-defined]
    value: Tensor = transform(like.detach().new_zeros(shape))
    return value


class NormalizationModel(PyroModule):
    r"""A Pyro model with the normalization statistics of a network as latent variables.

    .. math::
        \text{shift}, \text{scale} \sim p, \qquad
        y_i \sim \text{likelihood}(f(x_i, \text{shift}, \text{scale})), \quad i = 1, \dots, N

    The latents are global: one draw serves the whole data set. A mini-batch of ``B`` examples counts
    ``N / B`` times, so that an ELBO is an unbiased estimate of the full one. Everything of Pyro works
    on the model: ``SVI``, ``ELBOModule``, autoguides, ``NUTS``, ``Predictive``, handlers.

    **Several draws per mini-batch.** With ``draws=K``, in training mode, the sites lie in a plate
    ``draws`` of size ``K`` and each draw serves a part of the mini-batch, ``K`` equal to the batch
    size giving one draw per example. The data term is summed over the parts and the KL divergence
    averaged over the draws: an unbiased estimate of the same ELBO, as a rule with less variance (see
    ``benchmarks/draws.py``). The guides of this library follow. Pyro's autoguides and NUTS would take
    the plate for ``K`` different latents, and batch statistics would mix examples with different
    latents: both are refused. In evaluation mode there is one draw.

    Args:
        network: a converted network, or a :class:`LatentNetwork`.
        likelihood: how outputs become distributions of the data.
        num_data: ``N``, size of the training set.
        prior: prior of the latents; None for the law of batch noise with ``n = num_data``, the
            uncertainty of statistics that are estimated from all training examples. It is narrow
            where there are many data, so that a learned posterior cannot do much harm. Wide priors
            ask for much more noise than predicts well (:doc:`/results/defaults`).
        draws: ``K``, independent draws per mini-batch in training mode.
        output: what of the network's output counts, where that is not one tensor: a key or attribute
            (``"logits"``), a position, or a function of it.

    Sites:
        - ``shift``, ``scale``: shape ``(channel,)``, or ``(draws, 1, channel)`` with ``draws > 1``
        - before them the hyperparameters of a prior that has some
        - ``y``: the data, one per example in a plate ``data`` at dimension -1

    Raises:
        ConversionError: if the network is not converted.
        OptionError: if ``num_data`` or ``draws`` is no integer of at least 1, or ``likelihood`` or
            ``prior`` is none (a class of them, a name, a loss).

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        num_data: Count,
        prior: Prior | None = None,
        draws: Count = 1,
        *,
        output: Output = None,
    ) -> None:
        super().__init__()
        prior = BatchNoise(max(int(num_data), 2)) if prior is None else prior
        # Where torch's assignment would put it; the property reads it from there.
        self._modules["network"] = LatentNetwork.of(network, output)
        self.likelihood = likelihood
        self.num_data = int(num_data)
        self._prior = prior
        self.draws = int(draws)

    @property
    def space(self) -> LatentSpace:
        """The space of the latents."""
        return self.network.space

    @property
    def network(self) -> LatentNetwork:
        """The network, read without the ``param`` statements that a PyroModule adds."""
        network = self._modules["network"]
        assert isinstance(network, LatentNetwork)
        return network

    @property
    def prior(self) -> Prior:
        """The prior of the latents. It is set once: guides have a factor for its hyperparameters."""
        return self._prior

    @prior.setter
    def prior(self, prior: Prior) -> None:
        raise OptionError(
            "NormalizationModel: the prior is set once, since guides are made for it. Make a "
            "NormalizationModel(model.network, model.likelihood, model.num_data, prior), and then the "
            "guide."
        )

    @property
    def num_draws(self) -> int:
        """Draws per mini-batch now, ``draws`` in training mode and 1 in evaluation mode."""
        return self.draws if self.training else 1

    @contextmanager
    def draw_plate(self) -> Iterator[None]:
        """The plate of ``draws``, each with its share of the KL divergence; a guide samples in it."""
        with ExitStack() as stack:
            if self.num_draws > 1:
                self._refuse_draws()
                stack.enter_context(pyro.plate("draws", self.num_draws, dim=-2))
                stack.enter_context(poutine.scale(scale=1 / self.num_draws))
            yield

    def forward(
        self,
        x: Any = None,
        y: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            x: inputs, examples on axis 0 of every tensor, as :class:`LatentNetwork` takes them. Of
                objects (graphs, packed sequences) the examples are the rows of the output. None samples
                the latents alone: so ``guide()`` makes the parameters of an autoguide, which has none
                before its first call, for ``guide.load_state_dict``.
            y: data in the shape the likelihood says; None to sample it. Missing values (NaN, or the
                likelihood's ``ignore_index``) are masked; their examples count in ``num_data``.
            weight: how often each example counts in the log likelihood, shape ``(batch,)``; None
                for once.

        Returns:
            ``y``, given or sampled; the shift, if there is no ``x``.

        Raises:
            ShapeError: if ``y`` does not fit the network's output, or ``weight`` not ``x``.
            DataError: if ``y`` has values outside of the likelihood's support, or a weight is
                negative or not finite.
        """
        network = self.network
        self._state_parameters()
        with self.draw_plate():
            shift, scale = sample_latents(network, self.prior)
        if x is None:
            return shift
        output, sample_dims, rows = self.outputs(x, shift, scale)
        data = pyro.plate("data", rows, dim=-1)
        with data, poutine.scale(scale=self.num_data / rows):
            if y is None:
                drawn: Tensor = pyro.sample("y", self.likelihood.distribution(output, sample_dims))
                return drawn
            self.check_data(y, weight, output, sample_dims, values=is_validation_enabled())
            observed, value = self.likelihood.objective(output, y, sample_dims, weight)
            pyro.sample("y", observed, obs=value)
        return y

    def outputs(self, x: Any, shift: Tensor, scale: Tensor) -> tuple[Tensor, int, Any]:
        """What the network makes of inputs, for the likelihood.

        Args:
            x: inputs, as in :meth:`forward`.
            shift: as the sites are, with the plates around them in front.
            scale: of the same shape.

        Returns:
            The output in single precision or more, its number of sample axes, and that of examples (a
            tensor while torch traces).

        Raises:
            ShapeError: if examples are not on the output's axis 0.
            DataError: if there are none.
        """
        draws = self.num_draws if shift.ndim >= 3 else 1
        examples = 0 if draws == 1 and is_one_piece(x) else num_examples(x)
        shift, scale = (self._align(value, examples) for value in (shift, scale))
        output = self.network(x, shift, scale)
        rows = next(iter(output.shape[max(0, shift.ndim - 2) :]), 1)
        if examples and rows != examples:
            raise ShapeError(
                f"NormalizationModel: the network's output for {examples} examples has the shape "
                f"{tuple(output.shape)}: examples must be on its axis 0, too. {EXAMPLES_FIRST}"
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # after autocast
        sample_dims = max(0, shift.ndim - 2)
        if self.num_draws > 1 and sample_dims:
            output = output.unsqueeze(sample_dims)  # the draws' plate dimension
            sample_dims += 1
        if rows == 0:
            raise DataError("NormalizationModel: the batch has no examples.")
        return output, sample_dims, rows

    def check_data(
        self, y: Any, weight: Any, output: Tensor, num_sample_dims: int, *, values: bool
    ) -> None:
        """Refuse data, or weights of examples, that do not fit the output.

        Args:
            y: data, as in :meth:`forward`.
            weight: how often each example counts, or None.
            output: of :meth:`outputs`.
            num_sample_dims: its number of sample axes.
            values: also look at the values, which waits for the device.

        Raises:
            ShapeError: if shapes disagree.
            DataError: if values are impossible.
        """
        for name, given in (("y", y), ("weight", weight)):
            if given is not None and not isinstance(given, Tensor):
                raise DataError(
                    f"NormalizationModel: {name} must be a tensor, got {type(given).__name__}."
                )
        self.likelihood.check_training(y, output, num_sample_dims, values=values)
        if weight is not None:
            _check_weight(weight, output.shape[num_sample_dims : num_sample_dims + 1], values)

    def extra_repr(self) -> str:
        """Show what is no module."""
        draws = f", draws={self.draws}" if self.draws > 1 else ""
        return f"num_data={self.num_data}, prior={self.prior}{draws}"

    def _align(self, value: Tensor, batch: int) -> Tensor:
        """Give a site's value the shape (*samples, 1 or batch, channel) of LatentNetwork."""
        if self.num_draws > 1 and value.ndim >= 3:
            share = torch.arange(batch, device=value.device) * self.num_draws // batch
            return value.squeeze(-2).index_select(-2, share)
        if value.ndim == 2 and len(value) > 1:
            # Predictive(parallel=True) drops the plate dimension of vector-valued sites.
            return value.unsqueeze(-2)
        return value

    def _refuse_draws(self) -> None:
        for layer in self.network.layers:
            if layer.normalizer.uses_batch and layer.training:
                raise OptionError(
                    f"NormalizationModel has draws={self.draws}, but {layer.name} takes statistics "
                    "over the batch: examples with different draws would share them, and the ELBO "
                    "would be another one. Use draws=1, another normalizer, or a frozen network in "
                    "evaluation mode."
                )
        # Pyro's autoguides and NUTS first run the model under an InitMessenger, to see its sites.
        if runs_under(lambda h: isinstance(h, InitMessenger) and h.init_fn is not init_to_sample):
            raise OptionError(
                f"NormalizationModel has draws={self.draws}: Pyro's autoguides and MCMC would "
                "take each draw for a latent of its own. Use a guide of pyronorm.guides, "
                "draws=1, or model.eval()."
            )

    def _state_parameters(self) -> None:
        """Tell Pyro of the network's parameters, under the names that ``pyro.module`` gives them.

        Unlike ``pyro.module`` this keeps quiet about frozen parameters, and refuses to run under SVI
        if the global store holds another model's parameters by these names: SVI would train those.
        """
        trained_by_svi = runs_under(states_parameters)
        store = pyro.get_param_store()
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                full_name = param_with_module_name("network", name)
                pyro.param(full_name, parameter)
                # Not what pyro.param returns: handlers may have wrapped that.
                if trained_by_svi and full_name in store and store[full_name] is not parameter:
                    raise OptionError(
                        f"Pyro's parameter store holds {name!r} of another model, so this one would "
                        "not be trained. Call pyro.clear_param_store() first."
                    )


def _check_weight(weight: Tensor, examples: torch.Size, values: bool) -> None:
    if weight.shape != examples:
        raise ShapeError(
            f"NormalizationModel: weight must have the shape {tuple(examples)}, one per example, got "
            f"{tuple(weight.shape)}."
        )
    if values:
        require(
            ((weight >= 0) & weight.isfinite()).all(),
            lambda: DataError("NormalizationModel: weights must be finite and not negative."),
        )
