"""What training minimizes in a step: in closed form where the laws say everything, else by Pyro."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyronorm.errors import OptionError
from pyronorm.infer.closed_form import ClosedForm, NoClosedFormError, has_closed_form
from pyronorm.infer.elbo import KLWeight, default_elbo
from pyronorm.infer.generators import replayed
from pyronorm.infer.messages import plain_messages
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.kernels import under_autocast

__all__ = ["NegativeELBO"]

_NOT_COMPILED = (
    "fit: compile=True needs an objective in closed form: a guide of pyronorm.guides or your own that "
    "says its law, no estimator of your own, no sites in the network, no handlers around. Leave compile "
    "out, and Pyro's ELBO is taken."
)


class NegativeELBO(nn.Module):
    """The negative ELBO of mini-batches per example, with mixed precision in the network alone.

    Densities of the latents need all their digits: a Gaussian of low rank, for one, a Cholesky
    decomposition, which half precision does not have on a GPU.

    Pyro's ELBO is the definition. In closed form it is the same, faster; whether there is one is seen
    in the first batch, whose draws are taken back if there is none.

    Args:
        model: the model.
        guide: the guide.
        elbo: Pyro's estimator of the user's; None for the one that fits the guide.
        compiled: whether the closed form is compiled, after the first batch.
        graphed: whether, on a GPU, it is also captured in CUDA graphs.

    Raises:
        OptionError: if it is to be compiled, and there is none.
    """

    def __init__(
        self,
        model: NormalizationModel,
        guide: nn.Module,
        elbo: ELBO | None,
        *,
        compiled: bool = False,
        graphed: bool = False,
    ) -> None:
        super().__init__()
        self.elbo = ELBOModule(model, guide, default_elbo(guide) if elbo is None else elbo)
        self._network = (model.network,)  # it is a part of the ELBO already
        self._num_data = model.num_data
        own = elbo is None and has_closed_form(model, guide)
        self._closed_form = ClosedForm(model, guide) if own else None  # type: ignore[arg-type]
        self._started = False
        self.fit: tuple[Tensor, float] | None = None
        """Of the last loss, the log likelihood, and what makes of it that of an example; None with an
        estimator of the user's."""
        if compiled and self._closed_form is None:
            raise OptionError(_NOT_COMPILED)
        self._compiled = compiled
        self._mode = "reduce-overhead" if graphed else None
        self._graph: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._weight: tuple[float, Tensor] | None = None  # of the last step

    def refuse_impossible(self) -> None:
        """Refuse targets that were to be looked at later.

        Raises:
            DataError: if their values are impossible.
        """
        if self._closed_form is not None:
            self._closed_form.refuse_impossible()

    def forward(self, kl_weight: float, values: bool | None, *batch: Any) -> Tensor:
        """The negative ELBO, divided by the number of data.

        Args:
            kl_weight: the weight of the KL divergence.
            values: whether to check the values of the targets; None for later, if that can be. Pyro
                validates distributions only where they are checked.
            batch: what model and guide are called with.
        """
        if self._closed_form is None or am_i_wrapped():
            return self._by_pyro(kl_weight, values, batch)
        validated = dist.is_validation_enabled()  # the part of Pyro's validation that is asked here
        dist.enable_validation(bool(values) and validated)
        try:
            if self._compiled and values is False:
                return self._by_compiler(kl_weight, batch)
            return self._in_closed_form(self._closed_form, kl_weight, values, batch)
        finally:
            dist.enable_validation(validated)

    def _in_closed_form(
        self, closed: ClosedForm, kl_weight: float, values: bool | None, batch: tuple[Any, ...]
    ) -> Tensor:
        with nullcontext() if self._started else replayed(batch[1].device) as replay:
            try:
                loss, fit = closed(kl_weight, *batch, values=values)
            except NoClosedFormError:
                self._closed_form = None
                if self._compiled:
                    raise OptionError(_NOT_COMPILED) from None
                if replay is not None:
                    replay()
                return self._by_pyro(kl_weight, values, batch)
        self._started = True
        self.fit = fit, 1 / len(batch[1])
        return loss

    def _by_compiler(self, kl_weight: float, batch: tuple[Any, ...]) -> Tensor:
        if self._graph is None:
            closed = self._closed_form
            assert closed is not None
            # What is looked up once, such as divergences by torch, a compiler cannot follow; a
            # process that goes on from a checkpoint has not met it.
            with replayed(batch[1].device) as replay, torch.no_grad():
                closed(kl_weight, *batch)
                replay()
            self._graph = torch.compile(closed.loss, fullgraph=True, mode=self._mode)
        if self._mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        if self._weight is None or self._weight[0] != kl_weight:
            self._weight = kl_weight, self._network[0].like.new_full((), kl_weight)
        loss, fit = self._graph(self._weight[1], *batch)
        self.fit = fit, 1 / len(batch[1])
        return loss

    def _by_pyro(self, kl_weight: float, values: bool | None, batch: tuple[Any, ...]) -> Tensor:
        device = batch[1].device.type
        loss: Tensor
        with (
            plain_messages(),
            nullcontext() if values else pyro.validation_enabled(False),
            nullcontext() if kl_weight == 1 else KLWeight(kl_weight),
        ):
            if not under_autocast(device):
                loss = self.elbo(*batch)
            else:
                dtype = torch.get_autocast_dtype(device)
                with (
                    _called_under(device, dtype, self._network[0]),
                    torch.autocast(device, enabled=False),
                ):
                    loss = self.elbo(*batch)
        observed = getattr(self.elbo.elbo, "observed", None)
        self.fit = None if observed is None else (observed, 1 / self._num_data)
        return loss / self._num_data


@contextmanager
def _called_under(device: str, dtype: torch.dtype, network: nn.Module) -> Iterator[None]:
    """For the time of the block, calls of the network run under mixed precision."""
    calls = ExitStack()

    def before(*_: Any) -> None:
        calls.enter_context(torch.autocast(device, dtype))

    def after(*_: Any) -> None:
        calls.close()

    hooks = (
        network.register_forward_pre_hook(before),
        network.register_forward_hook(after, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
