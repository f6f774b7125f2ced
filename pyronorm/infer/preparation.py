"""What has to be right before and while a model is trained: the guide, the data, the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyronorm.errors import DataError, OptionError
from pyronorm.infer.data import num_batches
from pyronorm.model import NormalizationModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "check_guide",
    "check_num_data",
    "check_parameters",
    "default_fabric",
    "frozen",
    "parameter_groups",
]


def check_guide(model: NormalizationModel, guide: Any) -> None:
    """Refuse what cannot be trained as a guide."""
    if not isinstance(guide, nn.Module) or guide is model:
        came = f"the class {guide.__name__}" if isinstance(guide, type) else type(guide).__name__
        raise OptionError(
            "fit: guide must be a guide of pyronorm.guides, an autoguide of Pyro, or a module of your "
            f"own, made for the model, such as pyronorm.guides.MeanField(model), got {came}."
        )


def check_num_data(num_data: int, examples: int | None, batches: Any) -> None:
    """Compare ``num_data`` with the examples of an epoch; batches may lack a rest."""
    count = num_batches(batches)
    dataset = getattr(batches, "dataset", None)
    whole = len(dataset) if isinstance(dataset, Sized) else examples
    if examples is None or num_data in (examples, whole):
        return
    if num_data == count:
        raise OptionError(
            f"fit: the model has num_data={num_data}, which is the number of batches; the data have "
            f"{examples} examples. num_data is the number of training examples, such as "
            "len(train_loader.dataset), not len(train_loader)."
        )
    if count is None or not 0 < num_data - examples < examples / count:  # a loader may drop a rest
        warnings.warn(
            f"fit: the model has num_data={num_data}, but an epoch has {examples} examples. The "
            "posterior is as wide as that of num_data examples.",
            stacklevel=2,
        )


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
