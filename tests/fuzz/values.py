"""Values that are wrong for every argument of a kind, each with a name.

A kind holds only what has to be refused wherever the kind is used; where one of its values is right
after all, ``expected.py`` says so with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pyronorm as pn

__all__ = ["VALUES"]

Made = dict[str, Callable[[], Any]]


class Thing:
    """An object of no use."""


def _constant(*values: Any) -> Made:
    return {repr(value): lambda value=value: value for value in values}


_NAN, _INF = float("nan"), float("inf")
_nothing = _constant(None)
_things: Made = {"an object": Thing, "a list of one": lambda: [1], "3j": lambda: 3j}

_whole = _constant(-1, 1.5, _NAN, _INF, True, "3") | _things | _nothing
_number = _constant(_NAN, _INF, "x", True) | _things | _nothing
_objects = _constant(None, 3, "x", 1.5) | {"an object": Thing, "a class": lambda: Thing}

_x = torch.linspace(-1, 1, 72).reshape(24, 3)
_y = torch.arange(24) % 2


def _with(value: float) -> torch.Tensor:
    x = _x.clone()
    x[3, 1] = value
    return x


_inputs: Made = {
    **_constant(None, 3, "x", ()),
    "[]": list,
    "{}": dict,
    "no rows": lambda: torch.empty(0, 3),
    "no axes": lambda: torch.tensor(1.0),
    "nan": lambda: _with(_NAN),
    "inf": lambda: _with(_INF),
    "complex": lambda: _x.to(torch.complex64),
    "numbers": lambda: [1.0, 2.0],
    "texts in an array": lambda: np.array([["a", "b", "c"]] * 24),
    "rows": lambda: [[1.0, 2.0, 3.0]],
    "an iterator": lambda: iter([_x]),
    "a class": lambda: TensorDataset,
    "a function": lambda: lambda: _x,
    "other width": lambda: torch.randn(24, 5),
}
_pairs: Made = {
    **_inputs,
    "x alone": lambda: _x,
    "y None": lambda: (_x, None),
    "y list": lambda: (_x, _y.tolist()),
    "y texts in an array": lambda: (_x, np.array(["a"] * 24)),
    "x and y numpy": lambda: (_x.numpy(), _y.numpy()),
    "y short": lambda: (_x, _y[:5]),
    "y no axes": lambda: (_x, torch.tensor(1)),
    "y too large": lambda: (_x, _y + 7),
    "y negative": lambda: (_x, _y - 3),
    "y fractions": lambda: (_x, _y + 0.5),
    "y complex": lambda: (_x, _y.to(torch.complex64)),
    "y a column": lambda: (_x, _y[:, None]),
    "y a matrix": lambda: (_x, torch.zeros(24, 2)),
    "x nan": lambda: (_with(_NAN), _y),
    "x inf": lambda: (_with(_INF), _y),
    "x and y empty": lambda: (_x[:0], _y[:0]),
    "three": lambda: (_x, _y, _y),
}
_CLASSES = {"y too large", "y negative", "y fractions"}  # numbers like others, if not of classes
_tensor: Made = {
    **_constant(None, "x", 3),
    "an object": Thing,
    "numpy": lambda: np.ones((4, 8)),
    "a list": lambda: [[1.0] * 8],
    "complex": lambda: torch.ones(24, 8, dtype=torch.complex64),
    "no axes": lambda: torch.tensor(1.0),
    "empty": lambda: torch.empty(0),
    "five axes": lambda: torch.ones(1, 1, 1, 1, 3),
}
_names: Made = {**_constant(None, 3, 1.5, "no-such"), "an object": Thing, "a class": lambda: Thing}

_list = _constant(None, 3, "x") | {"an object": Thing, "things": lambda: [Thing()]}
_mapping = _constant(None, 3, "x", ()) | {"an object": Thing, "things": lambda: {"a": Thing()}}

VALUES: dict[str, Made] = {
    # numbers
    "count": _constant(0) | _whole,
    "count from 0": _whole,
    "count from 2": _constant(0, 1) | _whole,
    "positive": _constant(0, -1.0) | _number,
    "not negative": _constant(-1.0) | _number,
    "number": _number,
    "above 1": _constant(0, 1, -1.0) | _number,
    "probability": _constant(-0.1, 1.5) | _number,
    "seed": _constant(-1, 1.5, _NAN, 2**63, True, "3") | _things,
    "seed number": _constant(-1, 1.5, _NAN, True, "3") | _things | _nothing,
    "level or levels": _constant(-0.1, 1.5, _NAN, "x", None) | {"an object": Thing},
    "positive or tensor": _constant(0, -1.0, _NAN, _INF, "x", None)
    | {"an object": Thing, "complex": lambda: torch.ones(8, dtype=torch.complex64)}
    | {"a tensor with nan": lambda: torch.tensor([1.0, _NAN])},
    # tensors
    "tensor": _tensor,
    "finite": {
        **_tensor,
        "nan": lambda: torch.full((24, 8), _NAN),
        "integers of text": lambda: "12",
    },
    "latents": {
        **_tensor,
        "nan": lambda: torch.full((8,), _NAN),
        "inf": lambda: torch.full((8,), _INF),
        "other width": lambda: torch.ones(5),
    },
    "scales": {
        **_tensor,
        "nan": lambda: torch.full((8,), _NAN),
        "inf": lambda: torch.full((8,), _INF),
        "other width": lambda: torch.ones(5),
        "zero": lambda: torch.zeros(8),
        "negative": lambda: -torch.ones(8),
    },
    # data
    "inputs": _inputs,
    "pairs": _pairs,
    "real pairs": {k: v for k, v in _pairs.items() if k not in _CLASSES},
    "layer input": {k: v for k, v in _tensor.items() if k != "no axes"}
    | {"other width": lambda: torch.ones(24, 5)},
    "input": {k: v for k, v in _inputs.items() if k not in ("nan", "inf", "no rows")},
    # objects
    "object": _objects | {"a list": lambda: [Thing()], "a module": lambda: nn.Linear(3, 2)},
    "network": _objects | {"a module class": lambda: nn.Linear, "plain": lambda: nn.Linear(3, 2)},
    "model": _objects
    | {
        "the class": lambda: pn.NormalizationModel,
        "a network": lambda: nn.Linear(3, 2),
        "a list": lambda: [Thing()],
    },
    "guide": _objects
    | {"the class": lambda: pn.guides.MeanField, "a likelihood": pn.likelihoods.Poisson},
    "posterior": _objects
    | {
        "the class": lambda: pn.guides.MeanField,
        "a function": lambda: lambda *_: None,
        "a prior": lambda: pn.priors.Standard(),
        "a network": lambda: nn.Linear(3, 2),
        "a list": lambda: [Thing()],
    },
    "likelihood": _objects
    | {"the class": lambda: pn.likelihoods.Categorical, "a module": lambda: nn.Linear(3, 2)},
    "prior": _objects | {"the class": lambda: pn.priors.Standard},
    "normalizer": _objects
    | {"the class": lambda: pn.normalizers.Batch, "a layer": lambda: nn.BatchNorm1d(8)},
    "function or None": _constant(3, "x") | {"an object": Thing},
    "callable": _constant(None, 3, "x") | {"an object": Thing},
    "list": _list,
    "filled list": _list | _constant(()),
    "mapping": _mapping,
    "filled mapping": _mapping | {"{}": dict},
    "index": _constant(1.5, _NAN, True, "x") | {"an object": Thing},
    "part of an output": _constant(1.5, _NAN) | {"an object": Thing},
    "cutpoints": {k: v for k, v in _tensor.items() if k != "3"} | _constant(1, 0, -1, 2.5),
    "counts": _constant(None, 0, "x", (0,), (1.5,), (_NAN,), (-1,), ("3",)) | {"an object": Thing},
    "numbers of seeds": _constant(None, 0, "x", (1.5,), (_NAN,), (-1,), ("3",), (2**63,))
    | {"an object": Thing},
    # text
    "choice": _names,
    "name": _constant(None, 3, 1.5) | {"an object": Thing},
    "names": _constant(3, ["no-such"], [3]) | {"an object": Thing},
    "names of one's own": _constant(3, [3], "x") | {"an object": Thing},
    "file": _constant(None, 3, "no-such-file", ".") | {"an object": Thing},
    "target": _constant(None, 3, ".", "no-such-folder/file") | {"an object": Thing},
    "place": _constant(None, 3.5, "nonsense", "cuda:99") | {"an object": Thing},
    "levels": {k: v for k, v in _tensor.items() if k != "no axes"}
    | {"nan": lambda: torch.tensor([_NAN]), "too large": lambda: torch.tensor([1.5])},
    "folder": _constant(None, 3) | {"an object": Thing},
    "device": _constant(3.5, "nonsense", "cuda:99") | {"an object": Thing},
}
