"""One step of training: a batch, the negative ELBO, its gradient, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pyronorm.errors import DataError, OptionError
from pyronorm.infer.augment import Augment, augmented
from pyronorm.infer.batch import MiniBatch
from pyronorm.infer.fused import fuse
from pyronorm.infer.generators import replayed
from pyronorm.infer.messages import refuse_non_finite
from pyronorm.infer.objective import NegativeELBO
from pyronorm.infer.options import Objective, Optimization, needs_closure
from pyronorm.infer.processes import Processes
from pyronorm.inputs import all_finite
from pyronorm.model import NormalizationModel
from pyronorm.randomness import seeded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Step"]

_Fit = tuple[Tensor, float] | None


class Step:
    """Steps of an optimizer on batches, and the losses met on the way.

    The loss is checked before the parameters change where it is known at once, on a CPU and for the
    first batch. On other devices losses add up there, and are read at the end of an epoch, or by who
    asks for :attr:`loss`: no step waits. Several processes read it while the next batch is under way.

    Of several processes each has a part of the batch, and draws latents of its own: the loss is the
    mean over all examples and the gradient that of this loss, an ELBO estimated by as many draws. Where
    layers share statistics between processes, all examples have to share one draw, too.

    Args:
        model: the model.
        guide: the guide.
        optimizer: over parameters of the two.
        fabric: Lightning's Fabric.
        objective: Pyro's estimator and the KL weight.
        optimization: clipping and accumulation.
        augment: changes each batch; None for none.
        before_change: called before parameters change.
        processes: those that have parts of the batch.
    """

    def __init__(
        self,
        model: NormalizationModel,
        guide: nn.Module,
        optimizer: Optimizer,
        fabric: Fabric,
        objective: Objective,
        optimization: Optimization,
        augment: Augment | None = None,
        before_change: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
    ) -> None:
        self._fabric = fabric
        self._objective = objective
        self._clip = optimization.gradient_clip_norm
        self._accumulate = optimization.accumulate
        self._augment = augment
        self._before_change = before_change
        self._processes = Processes() if processes is None else processes
        self._sizes = [1.0]  # examples of the present batch, by process
        self._seed: int | None = None
        self._values: bool | None = (
            True  # whether the values of targets are checked; None for later
        )
        layers = [layer for layer in model.network.layers if layer.normalizer.spans_processes]
        self._spanning = layers if self._processes.size > 1 else []
        self._original, self._updated = optimizer, False
        self._closure = needs_closure(optimizer)
        if self._closure and self._accumulate > 1:
            raise OptionError(
                f"fit: {type(optimizer).__name__} evaluates the loss itself, on one batch, so it does "
                "not go together with accumulate. Use larger batches."
            )
        on_cpu = fabric.device.type == "cpu"
        # Captured gradients are written anew by each batch, so they cannot be accumulated.
        alone = self._accumulate == 1 and not self._closure
        negative_elbo = NegativeELBO(
            model,
            guide,
            objective.elbo,
            compiled=optimization.compile,
            graphed=optimization.compile and alone and fabric.device.type == "cuda",
        )
        self._objective_module = negative_elbo
        self._module, self._optimizer = fabric.setup(negative_elbo, optimizer)
        self._direct = _changes_nothing(fabric)
        if self._direct:
            self._module, self._optimizer = negative_elbo, optimizer
        for part in self._module.modules():
            if isinstance(part, DistributedDataParallel):
                part.broadcast_buffers = False  # running a model changes none
        self._at_once = on_cpu
        self._unread: tuple[Tensor, _Fit, float, list[float]] | None = None
        self._on_device: list[Tensor] = []  # sums of losses and of nll not read, and the last loss
        self._epochs_done = 0.0  # when the last of them was computed
        self._begun = False
        self._waiting = 0  # batches whose gradients the optimizer has not used
        self.kl_weight = 1.0
        """The KL weight of the last batch."""
        self._loss_read = math.nan
        self.total = 0.0
        """Sum of the losses since :meth:`start`."""
        self._nll = 0.0  # sum of the likelihood's part
        self._weights = 0.0  # sum of the KL weights

    @property
    def loss(self) -> float:
        """The last loss, per example: a device is waited for, but with others the last one known."""
        return float(self._on_device[2]) if self._on_device else self._loss_read

    def start(self) -> None:
        """Begin to sum losses."""
        self.total = self._nll = self._weights = 0.0
        self._waiting = 0
        self._unread = None
        self._on_device = []

    def state_dict(self) -> dict[str, Any]:
        """The losses so far, and the scale of gradients in half precision; between steps."""
        self._read_last()
        scaler = self._fabric.strategy.precision.state_dict()
        return {
            "total": self.total,
            "parts": [self._nll, self._weights],
            "loss": self.loss,
            "kl_weight": self.kl_weight,
            "precision": scaler,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self.total, self._loss_read = state["total"], state["loss"]
        self._nll, self._weights = state["parts"]
        self._on_device = []
        self.kl_weight = state["kl_weight"]
        self._fabric.strategy.precision.load_state_dict(state["precision"])

    def __call__(self, batch: MiniBatch, epochs_done: float, *, stands_in: bool = False) -> bool:
        """Take a batch; in the first epoch its values are checked.

        Args:
            batch: with targets, on the device.
            epochs_done: epochs so far, a fraction within an epoch.
            stands_in: the batch does not count: other processes have one, this one has no more.

        Returns:
            Whether the optimizer took a step.
        """
        first = epochs_done < 1
        self._values = (True if self._at_once or not self._begun else None) if first else False
        self.kl_weight = self._objective.weight(epochs_done)
        if self._augment is not None:
            batch = augmented(batch, self._augment)
        if first and self._values and not bool(all_finite(batch.x)):  # later the loss would tell
            raise DataError("fit: train_data has a batch with inputs that are not finite.")
        self._begun = True
        self._meet(0 if stands_in or batch.y is None else len(batch.y))
        if self._closure:
            self._before_change()
            self._evaluate_within_step(batch, epochs_done)
            return True
        last = self._waiting + 1 == self._accumulate
        with nullcontext() if last else self._without_sync():
            self._backward(batch, epochs_done)
        self._waiting += 1
        if last:
            self._update()
        return last

    def finish(self) -> bool:
        """Use the gradients of batches that are fewer than ``accumulate``, and read the last loss.

        Returns:
            Whether the optimizer took a step.
        """
        waiting = self._waiting
        if waiting:
            self._processes.average(self._gradients())  # the backward passes have not done so
            self._update()
        self._read_last()
        return waiting > 0

    def parts(self, batches: int) -> tuple[float | None, float | None]:
        """The likelihood's part of the mean loss since :meth:`start`, and the divergence; see Epoch.

        Args:
            batches: how many there were.
        """
        if not math.isfinite(self._nll):
            return None, None
        rest = self.total - self._nll
        return self._nll / batches, rest / self._weights if self._weights else None

    def _meet(self, examples: int) -> None:
        """See that all processes have a batch, and how large it is."""
        if self._processes.size == 1:
            return
        shared = any(layer.training for layer in self._spanning)
        number = int(torch.randint(2**48, ())) if shared else 0
        rows = self._processes.exchange(float(examples), float(number))
        self._sizes = [row[0] for row in rows]
        self._seed = int(rows[0][1]) if shared else None
        if shared and not all(self._sizes):
            raise OptionError(
                f"fit: {self._spanning[0].name} shares statistics between processes, of which one has "
                "no more batches while others have. Give all processes as many, or data that fit "
                "shares out itself: a Dataset, its DataLoader, or tensors."
            )

    def _read_last(self) -> None:
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self._read(*unread)
        if self._on_device:
            (total, nll, last), self._on_device = self._on_device, []
            self._loss_read = float(last)
            self.total += float(total)
            self._nll += float(nll)
            self._refuse_diverged(self.total, self._epochs_done)
        self._module.refuse_impossible()

    def _backward(self, batch: MiniBatch, epochs_done: float) -> None:
        if self._waiting == 0:
            self._optimizer.zero_grad()
        loss = self._loss(batch)
        self._note(loss.detach(), epochs_done)
        loss = self._weighted(loss)
        self._differentiate(loss / self._accumulate if self._accumulate > 1 else loss)

    def _differentiate(self, loss: Tensor) -> None:
        if self._direct:
            loss.backward()
            return
        with self._processes.in_step():
            self._fabric.backward(loss)

    def _without_sync(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._direct else self._fabric.no_backward_sync(self._module)

    def _loss(self, batch: MiniBatch) -> Tensor:
        with nullcontext() if self._seed is None else self._sharing(self._seed):
            try:
                loss: Tensor = self._module(self.kl_weight, self._values, *batch.arguments())
            except ValueError:  # of torch's distributions
                refuse_non_finite("fit", self._module.elbo)
                raise
            return loss

    @contextmanager
    def _sharing(self, seed: int) -> Iterator[None]:
        """One draw for all processes, whose layers exchange statistics within."""
        with seeded(seed, self._fabric.device), self._processes.in_step():
            yield

    def _weighted(self, loss: Tensor) -> Tensor:
        """The loss, such that the mean over processes is that over all examples."""
        sizes = self._sizes
        share = sizes[self._processes.rank] * len(sizes) / sum(sizes)
        return loss if share == 1 else loss * share

    def _gradients(self) -> list[Tensor]:
        return [
            p.grad
            for group in self._optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    def _update(self) -> None:
        self._before_change()
        if self._waiting < self._accumulate:
            torch._foreach_mul_(self._gradients(), self._accumulate / self._waiting)
        self._waiting = 0
        self._clip_gradients()
        if not self._updated:
            fuse(self._original)
            self._updated = True
        self._optimizer.step()

    def _evaluate_within_step(self, batch: MiniBatch, epochs_done: float) -> None:
        noted = False
        with replayed(self._fabric.device) as replay:

            def closure() -> Tensor:
                nonlocal noted
                replay()
                self._optimizer.zero_grad()
                loss = self._loss(batch)
                if not noted:
                    self._note(loss.detach(), epochs_done)
                noted = True
                # The optimizer decides by the loss, which has to be the same in all processes.
                value = loss if self._processes.size == 1 else self._joint(loss.detach())
                self._differentiate(self._weighted(loss))
                self._clip_gradients()
                return value

            self._optimizer.step(closure)

    def _clip_gradients(self) -> None:
        if self._clip is not None:
            self._fabric.clip_gradients(
                self._module,
                self._optimizer,
                max_norm=self._clip,
                error_if_nonfinite=self._at_once,
            )

    def _joint(self, loss: Tensor) -> Tensor:
        """The loss over the examples of all processes."""
        rows = self._processes.exchange(float(loss))
        return torch.full_like(loss, _mean([row[0] for row in rows], self._sizes))

    def _note(self, loss: Tensor, epochs_done: float) -> None:
        fit = self._objective_module.fit
        self._weights += self.kl_weight
        if self._at_once or (epochs_done == 0 and self._processes.size == 1):
            self._read(loss, fit, epochs_done, self._sizes)
            return
        if self._processes.size == 1:  # nothing waits: the sum is read at the end of the epoch
            self._epochs_done = epochs_done
            total, nll, _ = self._on_device or torch.zeros(3, device=loss.device)
            part, scale = fit or (loss, math.nan)
            self._on_device = [total + loss, torch.sub(nll, part, alpha=scale), loss]
            return
        unread, self._unread = self._unread, (loss, fit, epochs_done, self._sizes)
        if unread is not None:
            self._read(*unread)
        else:
            self._processes.exchange()

    def _read(self, loss: Tensor, fit: _Fit, epochs_done: float, sizes: list[float]) -> None:
        nll = math.nan if fit is None else -float(fit[0]) * fit[1]
        rows = self._processes.exchange(float(loss), nll)
        self._loss_read = _mean([row[0] for row in rows], sizes)
        self.total += self._loss_read
        self._nll += _mean([row[1] for row in rows], sizes)
        self._refuse_diverged(self._loss_read, epochs_done)

    def _refuse_diverged(self, loss: float, epochs_done: float) -> None:
        if not math.isfinite(loss):
            if epochs_done == 0:
                refuse_non_finite("fit", self._module.elbo)
            raise DataError(
                f"fit: the loss is {loss} after {epochs_done:.2f} epochs: training diverged. "
                "Lower the learning rate, or set gradient_clip_norm."
            )


def _changes_nothing(fabric: Fabric) -> bool:
    """Whether what Fabric puts around modules and optimizers hands everything on as it is.

    On one device in single precision, without callbacks: what is left of it is its time.
    """
    parts = (fabric, fabric.strategy, fabric.strategy.precision)
    kinds = [(type(part).__module__.partition(".")[0], type(part).__name__) for part in parts]
    # By name: Lightning's classes have two homes, lightning_fabric and lightning.fabric.
    return (
        all(home in ("lightning_fabric", "lightning") for home, _ in kinds)
        and [name for _, name in kinds] == ["Fabric", "SingleDeviceStrategy", "Precision"]
        and not fabric._callbacks
    )


def _mean(values: list[float], sizes: list[float]) -> float:
    """The mean over examples, of those processes that have some."""
    if len(values) == 1:
        return values[0]
    counted = [v * n for v, n in zip(values, sizes, strict=True) if n]
    return sum(counted) / sum(sizes)
