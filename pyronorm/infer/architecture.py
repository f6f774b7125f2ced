"""What a network is besides its tensors: the kinds of its modules, and their constants."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyronorm.errors import FileError
from pyronorm.normalizers import LatentNorm

__all__ = ["check_architecture", "describe_architecture"]

_PASSING = ("training", "inplace")  # of no consequence for a prediction


def describe_architecture(network: nn.Module) -> dict[str, Any]:
    """The class and the constants of every module, ready for JSON.

    Constants are public attributes that are numbers, strings, truth values, or tuples of these: a
    stride, a number of heads. Latent layers are left out; they say more of themselves.

    Args:
        network: any network.
    """
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        if isinstance(module, LatentNorm):
            continue
        kind = type(module)
        constants = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(module).items()
            if not key.startswith("_") and key not in _PASSING and _is_constant(value)
        }
        own = "torch" if kind.__module__.partition(".")[0] == "torch" else ""
        found[name] = {"class": kind.__name__, "package": own, "constants": constants}
    return found


def check_architecture(where: str, saved: Mapping[str, Any], network: nn.Module) -> None:
    """Refuse a network whose modules are others than those saved, or have other constants.

    Of torch's modules that is an error. A module of a user's class may keep a counter or a switch in
    such an attribute, so there it is a warning; the name of the class does not matter.

    Args:
        where: the file, for messages.
        saved: from :func:`describe_architecture`.
        network: the network.

    Raises:
        FileError: naming the layer.
    """
    doubts = []
    now = describe_architecture(network)
    for name in {**saved, **now}:
        theirs, mine = saved.get(name), now.get(name)
        difference = _difference(theirs, mine)
        if not difference:
            continue
        if all(side is None or side["package"] == "torch" for side in (theirs, mine)):
            raise FileError(f"{where}: is of another network. Its layer {name!r} {difference}.")
        doubts.append(f"its layer {name or '(the network itself)'!r} {difference}")
    if doubts:
        more = f", and {len(doubts) - 3} more" if len(doubts) > 3 else ""
        warnings.warn(
            f"{where}: may be of another network: {'; '.join(doubts[:3])}{more}. The weights fit, but "
            "predictions may not be those of before.",
            stacklevel=2,
        )


def _difference(theirs: Mapping[str, Any] | None, mine: Mapping[str, Any] | None) -> str:
    if theirs is None or mine is None:
        present, side = (mine, "the file") if theirs is None else (theirs, "this network")
        assert present is not None
        return f"({present['class']}) is not there in {side}"
    both = {theirs["package"], mine["package"]}
    if theirs["class"] != mine["class"] and "torch" in both:
        return f"is a {theirs['class']}, this network has a {mine['class']} there"
    for key, value in theirs["constants"].items():
        own = mine["constants"].get(key, value)  # versions of torch add some
        if own != value and not (own != own and value != value):  # NaN is like NaN
            return f"has {key}={_shown(value)}, this network has {_shown(own)} there"
    return ""


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(part, (bool, int, float, str)) for part in value)
    return isinstance(value, (bool, int, float, str))


def _shown(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)
