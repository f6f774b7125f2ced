"""What has to be right before and while a model is trained: the guide, the data, the parameters."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyronorm.checks import check_count, check_instance, check_positive
from pyronorm.devices import refuse_parts
from pyronorm.errors import DataError, OptionError, StatisticsError
from pyronorm.guides import Guide
from pyronorm.infer.batch import split
from pyronorm.infer.callbacks import Callback
from pyronorm.infer.data import as_batches
from pyronorm.infer.lengths import num_batches
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.pyro_guide import check_pyro_guide, is_pyro_guide
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.freshness import batch_layers

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pyronorm.infer.batches import TrainingBatches

__all__ = [
    "check_arguments",
    "check_numbers",
    "check_optimizer",
    "check_others",
    "check_parameters",
    "check_same_callbacks",
    "check_same_run",
    "compare_num_data",
    "default_fabric",
    "describe_run",
    "frozen",
    "frozen_parts",
    "make_guide_parameters",
    "parameter_groups",
    "refuse_number_of_batches",
]

_HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


def check_arguments(
    model: Any, guide: Any, optimization: Any, objective: Any, validation: Any
) -> None:
    """Refuse objects of the wrong kind, classes and functions in particular."""
    check_instance("fit", "model", model, NormalizationModel, "NormalizationModel(network, ...)")
    runs = isinstance(guide, nn.Module) and type(guide).forward is not nn.Module.forward
    runs = runs or is_pyro_guide(guide)  # its messengers have no forward
    if not runs or guide is model:
        came = f"the class {guide.__name__}" if isinstance(guide, type) else type(guide).__name__
        fix = ""
        if callable(guide) and not isinstance(guide, type) and guide is not model:
            fix = (
                " The parameters of a function are in Pyro's store, which fit doesn't use: write a "
                "pyro.nn.PyroModule with PyroParam, or train with pyro.infer.SVI and predict with "
                "pyronorm.PyroGuide(function)."
            )
        raise OptionError(
            "fit: guide must be a guide of pyronorm.guides, an autoguide of Pyro, or a module of your "
            f"own, made for the model, such as pyronorm.guides.MeanField(model), got {came}.{fix}"
        )
    refuse_parts([*model.named_parameters(), *guide.named_parameters()])
    if isinstance(guide, Guide):
        guide.check(model.space)
    check_pyro_guide(guide, model)
    check_instance("fit", "optimization", optimization, Optimization, "Optimization(accumulate=2)")
    check_instance("fit", "objective", objective, Objective, "Objective(kl_weight=0.5)")
    if validation is not None:
        check_instance("fit", "validation", validation, Validation, "Validation((x, y))")
        # What lies there as tensors is looked at now, and not after the first epoch.
        if isinstance(validation.data, (Tensor, tuple, list, Mapping)):
            for batch in as_batches(validation.data, 1):
                split(batch).targets("fit, validation")
                break


def check_others(callbacks: Any, fabric: Any, augment: Any, train_network: Any) -> None:
    """Refuse a callback that is not in a list, or a class; a device for a Fabric; and the like."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise OptionError(
            f"fit: callbacks must be a list of objects, such as [EarlyStopping(5)], got "
            f"{type(callbacks).__name__}."
        )
    for callback in callbacks:
        if isinstance(callback, type):
            raise OptionError(
                f"fit: callbacks must be objects, such as EarlyStopping(5), got the class "
                f"{callback.__name__}."
            )
        if not any(hasattr(callback, hook) for hook in _HOOKS):
            raise OptionError(
                f"fit: the callback {type(callback).__name__} has none of the methods that fit calls, "
                f"which are {', '.join(_HOOKS)}: it would do nothing."
            )
    # Lightning's class has two homes, lightning_fabric and lightning.fabric.
    if fabric is not None and (isinstance(fabric, type) or not hasattr(fabric, "to_device")):
        raise OptionError(
            'fit: fabric must be a Lightning Fabric, such as Fabric(accelerator="cuda", devices=1), got '
            f"{fabric!r}."
        )
    if augment is not None and not _takes_two(augment):
        raise OptionError(
            "fit: augment must be a function of inputs and targets that returns both, such as lambda "
            f"x, y: (change(x), y), got {augment!r}."
        )
    check_instance("fit", "train_network", train_network, bool, "True")


def _takes_two(function: Any) -> bool:
    if not callable(function) or isinstance(function, type):
        return False
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of no known signature
        pass
    return True


def check_numbers(
    optimization: Optimization, batch_size: Any, population_batches: Any, lr: Any
) -> None:
    """Refuse numbers out of range, and a learning rate of an optimizer that has its own."""
    check_count("fit", "batch_size", batch_size)
    if population_batches is not None:
        check_count("fit", "population_batches", population_batches)
    if lr is not None:
        check_positive("fit", "lr", lr)
        if optimization.optimizer is not None:
            raise OptionError(
                "fit: lr belongs to the default optimizer; set it in Optimization(optimizer=...)."
            )


def refuse_number_of_batches(num_data: int, examples: int | None, batches: Any) -> None:
    """Refuse a ``num_data`` that is the number of batches, where that is not the number of examples."""
    if examples is not None and num_data == num_batches(batches) not in _counts(examples, batches):
        raise OptionError(
            f"fit: the model has num_data={num_data}, which is the number of batches; the data have "
            f"{examples} examples. num_data is the number of training examples, such as "
            "len(train_loader.dataset), not len(train_loader)."
        )


def compare_num_data(num_data: int, examples: int, batches: Any) -> None:
    """Say that ``num_data`` is not the number of examples of an epoch; batches may lack a rest."""
    count = num_batches(batches)
    if num_data in _counts(examples, batches):
        return
    if count is None or not 0 < num_data - examples < examples / count:  # a loader may drop a rest
        warnings.warn(
            f"fit: the model has num_data={num_data}, but an epoch has {examples} examples. The "
            "posterior is as wide as that of num_data examples.",
            stacklevel=2,
        )


def _counts(examples: int, batches: Any) -> tuple[int, int]:
    """The examples of an epoch, and of the data set, of which a sampler may take a part."""
    dataset = getattr(batches, "dataset", None)
    return examples, len(dataset) if isinstance(dataset, Sized) else examples


def check_parameters(model: NormalizationModel, guide: nn.Module) -> None:
    """Refuse parameters that are not finite, by name."""
    named = [*model.named_parameters(), *guide.named_parameters()]
    if not named:
        return
    finite = torch.stack([p.detach().isfinite().all() for _, p in named]).tolist()
    wrong = [name for (name, _), good in zip(named, finite, strict=True) if not good]
    if wrong:
        raise DataError(
            f"fit: {wrong[0]} has values that are not finite ({len(wrong)} of {len(named)} "
            "parameters): training diverged. Lower the learning rate, or set gradient_clip_norm."
        )


def make_guide_parameters(
    model: NormalizationModel, guide: nn.Module, fabric: Fabric, batches: TrainingBatches
) -> None:
    """Run a guide once, in an empty store: an autoguide makes its parameters at its first call.

    Args:
        model: the model.
        guide: the guide.
        fabric: knows the device.
        batches: of which the call has the first; not asked for one where there is no call, since
            that would move the generator of their order.

    Raises:
        OptionError: if it states parameters that it does not have itself.
    """
    fabric.to_device(guide)
    if isinstance(guide, Guide):
        return
    with torch.no_grad():
        guide(*batches.first().arguments())
    own = {id(parameter) for part in (guide, model) for parameter in part.parameters()}
    stated = pyro.get_param_store().get_state()["params"]
    others = [name for name, parameter in stated.items() if id(parameter) not in own]
    if others:
        raise OptionError(
            f"fit: {type(guide).__name__} states {others} by pyro.param. These are in Pyro's store, "
            "which fit does not use, and would not be trained. Make them attributes of the guide, "
            "self.name = PyroParam(value, constraint), or train with pyro.infer.SVI; predict and the "
            "rest take the guide in both cases."
        )
    fabric.to_device(guide)


def parameter_groups(model: NormalizationModel, guide: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters, in named groups.

    Raises:
        OptionError: if there are none.
    """
    modules = {
        "network": model.network,
        "likelihood": model.likelihood,
        "guide": guide,
    }
    groups = [
        {"name": name, "params": [p for p in module.parameters() if p.requires_grad]}
        for name, module in modules.items()
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise OptionError(
            "fit: there is nothing to train: the network is frozen, and the guide and the "
            "likelihood have no parameters."
        )
    return groups


def check_optimizer(optimizer: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an optimizer that would train nothing, or go up.

    Args:
        optimizer: what the user's function made.
        groups: what it was given, from :func:`parameter_groups`.

    Raises:
        OptionError: saying why.
    """
    check_instance("fit", "what optimizer makes", optimizer, Optimizer, "SGD(groups)")
    ours = {id(p) for group in groups for p in group["params"]}
    if ours.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise OptionError(
            f"fit: the {type(optimizer).__name__} has none of the parameters that optimizer is called "
            "with, so that nothing would be trained: lambda groups: SGD(groups, lr=0.1)."
        )
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise OptionError(
                f"fit: the {type(optimizer).__name__} maximizes, and fit minimizes the negative ELBO. "
                "Leave maximize out."
            )
        lr = group.get("lr")
        if lr is not None and not 0 <= float(lr) < math.inf:
            raise OptionError(
                f"fit: the learning rate of {type(optimizer).__name__} must be finite and not negative, "
                f"got {lr}."
            )


@contextmanager
def frozen(network: nn.Module, without_gradient: bool) -> Iterator[None]:
    """Context in which a module's parameters have no gradient, if so."""
    parameters = [p for p in network.parameters() if p.requires_grad] if without_gradient else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def default_fabric() -> Fabric:
    """One device, the best there is, in single precision."""
    from lightning_fabric import Fabric

    return Fabric(accelerator="auto", devices=1)


def describe_run(
    model: NormalizationModel, guide: nn.Module, optimizer: Optimizer, **options: Any
) -> dict[str, Any]:
    """What a run is, in plain types, to tell whether a checkpoint is of the same one.

    Args:
        model: the model.
        guide: the guide.
        optimizer: the optimizer.
        options: numbers.
    """
    parts = {"likelihood": model.likelihood, "prior": model.prior, "guide": guide}
    described = {name: type(part).__name__ for name, part in parts.items()}
    numbers = {"num_data": model.num_data, "draws": model.draws}
    tensors = {name: list(value.shape) for name, value in model.state_dict().items()}
    return {**described, "optimizer": type(optimizer).__name__, **numbers, **options} | {
        "tensors": tensors
    }


def check_same_run(ours: dict[str, Any], stored: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        ours: this run, by :func:`describe_run`.
        stored: the checkpoint's.
    """
    ours, stored = dict(ours), dict(stored)
    tensors, others = ours.pop("tensors"), stored.pop("tensors", {})
    for name in [*tensors, *others]:
        if tensors.get(name) != others.get(name):
            raise OptionError(
                f"fit: the checkpoint is of another network: {name} has shape "
                f"{others.get(name, 'none')} there and {tensors.get(name, 'none')} here."
            )
    for name in [*ours, *stored]:
        if ours.get(name) != stored.get(name):
            raise OptionError(
                f"fit: the checkpoint is of another run: {name} is {stored.get(name)!r} there and "
                f"{ours.get(name)!r} here. Resume with the arguments it was made with."
            )


def check_same_callbacks(ours: list[str], stored: list[str]) -> None:
    """Refuse a checkpoint with the states of other callbacks."""
    if ours != stored:
        raise OptionError(
            f"fit: the checkpoint has the callbacks {stored}, and this run {ours}. Resume with the same "
            "ones."
        )


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The largest modules that a user has frozen: in evaluation mode, with no trainable parameter.

    They stay in evaluation mode, and their population statistics as they are.

    Args:
        network: the network, in the user's modes.

    Raises:
        StatisticsError: if one of them has a batch layer without statistics.
    """
    parameters = list(network.parameters())
    if network.training or not parameters or any(p.requires_grad for p in parameters):
        return [part for child in network.children() for part in frozen_parts(child)]
    for layer in batch_layers(network):
        if layer.statistics_stamp is None and not layer.unused:
            raise StatisticsError(
                f"fit: {layer.name} is frozen, in evaluation mode and without trainable parameters, but "
                "has no population statistics. Call pyronorm.estimate_population_statistics(network, "
                "train_data) first, or network.train()."
            )
    return [network]
