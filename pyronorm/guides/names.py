"""Whose parameters Pyro's store holds by a guide's names."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyronorm.errors import OptionError, ShapeError

__all__ = ["OwnParameters"]

# Parameters that guides of this process have stated: what else a store holds came from a file.
_STATED = WeakTensorKeyDictionary()


class OwnParameters(Messenger):
    """Around a guide: what Pyro's store has by the guide's names are the guide's own parameters.

    The store keeps what came first by a name, and SVI trains that; a module computes with its own
    parameters, so a second guide of one class would never be trained, without a word. Here a guide
    that runs takes the place of one that ran before. What was loaded from a file is not replaced but
    refused, or read.

    Args:
        read: copy what the store holds into the guide's parameters.

    Raises:
        OptionError: if the store holds parameters by these names that no guide has put there.
        ShapeError: if they are to be read and have other shapes.
    """

    def __init__(self, read: bool = False) -> None:
        super().__init__()
        self.read = read

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) < 2 or not isinstance(msg["args"][1], Tensor):
            return  # a PyroParam: there the store's value counts, and the module takes it
        name, own = msg["args"][:2]
        store = pyro.get_param_store()
        stored = store[name] if name in store.keys() else own  # noqa: SIM118
        if stored is not own:
            if self.read:
                _copy(stored, own, name)
            elif stored not in _STATED:
                raise OptionError(
                    f"Pyro's parameter store holds {name!r}, which no guide of this process has put "
                    "there: it is from a file. guide.read_param_store() takes the values over; "
                    "pyro.clear_param_store() forgets them."
                )
            del store[name]
        _STATED[own] = True


def _copy(stored: Tensor, own: Tensor, name: str) -> None:
    if stored.shape != own.shape:
        raise ShapeError(
            f"Pyro's parameter store holds {name!r} of shape {tuple(stored.shape)}, expected "
            f"{tuple(own.shape)}: it is of a guide for another network, or with other settings."
        )
    own.copy_(stored)
