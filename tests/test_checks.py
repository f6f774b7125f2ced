from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyronorm.checks import (
    Count,
    Finite,
    Natural,
    NotNegative,
    Positive,
    Probability,
    check_count,
    check_fields,
    check_instance,
    check_positive,
    checked,
)
from pyronorm.errors import OptionError, ShapeError


def test_counts():
    for good in (1, 7, np.int64(3)):
        check_count("f", "n", good)
    check_count("f", "n", 0, least=0)
    for bad in (0, -1, 1.0, True, None, "1", float("nan")):
        with pytest.raises(OptionError, match="f: n must be at least 1, an integer, got"):
            check_count("f", "n", bad)


def test_positive_numbers():
    for good in (1, 1e-9, np.float32(2)):
        check_positive("f", "lr", good)
    for bad in (0, -1.0, True, None, "1", float("nan"), float("inf")):
        with pytest.raises(OptionError, match="f: lr must be a finite number above 0, got"):
            check_positive("f", "lr", bad)


def test_instances():
    check_instance("f", "x", 3, int, "3")
    with pytest.raises(OptionError, match="f: x must be a int, such as 3, got the class int"):
        check_instance("f", "x", int, int, "3")
    with pytest.raises(OptionError, match="got str"):
        check_instance("f", "x", "3", int, "3")


if TYPE_CHECKING:
    from somewhere import Unknown


@checked
def door(
    count: Count = 1,
    natural: Natural = 0,
    positive: Positive | None = None,
    not_negative: NotNegative = 0.0,
    probability: Probability = 0.5,
    finite: Finite = 0.0,
    number: float = 1.0,
    tensor: Tensor | None = None,
    matrix: Float[Tensor, "row column"] | None = None,
    many: Float[Tensor, "*sample channel"] | None = None,
    labels: Int[Tensor, " example"] | None = None,
    module: nn.Module | None = None,
    function: Callable[[int], int] | None = None,
    names: str | Iterable[str] = (),
    modules: Sequence[nn.Module] = (),
    values: Mapping[str, Tensor] | None = None,
    pair: tuple[int, str] | None = None,
    sizes: tuple[Count, ...] = (),
    kind: type[nn.Module] | None = None,
    flag: bool = False,
    anything: Any = None,
    unknown: Unknown | None = None,
) -> str:
    return "in"


_matrix, _vector = torch.ones(2, 3), torch.ones(3)


@pytest.mark.parametrize(
    "given",
    [
        {"count": np.int64(3)},
        {"count": torch.tensor(2)},
        {"positive": np.float32(0.5)},
        {"positive": 3},
        {"number": float("inf")},
        {"matrix": _matrix},
        {"matrix": _matrix.bfloat16()},
        {"many": _vector},
        {"many": torch.ones(2, 1, 3)},
        {"labels": torch.arange(3)},
        {"module": nn.Linear(1, 1)},
        {"function": abs},
        {"function": nn.Linear},
        {"names": "one"},
        {"names": ["one", "two"]},
        {"names": (name for name in ["one"])},
        {"modules": [nn.Linear(1, 1)]},
        {"values": {"a": _vector}},
        {"pair": (1, "a")},
        {"sizes": (1, 2)},
        {"kind": nn.Linear},
        {"flag": "yes"},
        {"anything": object()},
        {"unknown": object()},
    ],
)
def test_a_door_lets_in(given):
    assert door(**given) == "in"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "door: count must be at least 1, an integer, got 0."),
        ({"count": True}, "at least 1, an integer, got True"),
        ({"count": 1.0}, "got 1.0"),
        ({"count": None}, "got None"),
        ({"count": torch.ones(2)}, "got a tensor of float32 with shape"),
        ({"natural": -1}, "natural must be at least 0, an integer, got -1"),
        ({"positive": 0}, "positive must be positive and finite, got 0"),
        ({"positive": float("inf")}, "got inf"),
        ({"positive": float("nan")}, "got nan"),
        ({"positive": "3"}, "got '3'"),
        ({"not_negative": -1e-9}, "finite and not negative, got -1e-09"),
        ({"probability": 1}, "between 0 and 1, got 1"),
        ({"finite": float("inf")}, "a finite number, got inf"),
        ({"number": 3j}, "a number, got 3j"),
        ({"number": True}, "a number, got True"),
        ({"tensor": [1.0]}, "a tensor of real numbers, got "),
        ({"tensor": _vector + 0j}, "a tensor of real numbers, got a tensor of complex64"),
        ({"matrix": torch.ones(2, 3, dtype=torch.long)}, "floating point numbers, got .* int64"),
        ({"labels": _vector}, "a tensor of integers, got a tensor of float32"),
        ({"module": nn.Linear}, "module must be a Module, got the class Linear"),
        ({"module": "m"}, "got str"),
        ({"function": 3}, "a function, got int"),
        ({"names": 3}, "names must be a text or a sequence, each a text, got 3"),
        ({"names": [3]}, r"got \[3\]"),
        ({"modules": [nn.Linear]}, "a sequence, each a Module, got "),
        ({"modules": "mm"}, "got str"),
        ({"values": {"a": 3}}, "a dictionary of a tensor of real numbers, got {'a': 3}"),
        ({"pair": (1,)}, "got "),
        ({"sizes": (1, 0)}, r"each at least 1, an integer, got \(1, 0\)"),
        ({"sizes": [1]}, "got "),
        ({"kind": nn.Linear(1, 1)}, "got Linear"),
    ],
)
def test_a_door_refuses(given, message):
    with pytest.raises(OptionError, match=message):
        door(**given)
    with pytest.raises(OptionError, match=message):  # by position as by name
        before = [*inspect.signature(door).parameters].index(next(iter(given)))
        door(*door.__wrapped__.__defaults__[:before], *given.values())


def test_axes_of_tensors():
    with pytest.raises(
        ShapeError, match=r"door: matrix must have the shape \(row, column\), got \(3,\)"
    ):
        door(matrix=_vector)
    with pytest.raises(ShapeError, match=r"shape \(\*sample, channel\), got \(\)"):
        door(many=torch.tensor(1.0))


def test_methods_say_whose_they_are():
    class Thing:
        @checked
        def __init__(self, size: Count) -> None:
            self.size = size

        @checked
        def grow(self, by: Count) -> None: ...

        @classmethod
        @checked
        def of(cls, size: Count) -> Thing:
            return cls(size)

    class Special(Thing):
        pass

    with pytest.raises(OptionError, match=r"^Special: size must"):
        Special(0)
    with pytest.raises(OptionError, match=r"^Special\.grow: by must"):
        Special(1).grow(0)
    with pytest.raises(OptionError, match=r"^Special\.of: size must"):
        Special.of("3")
    assert door.__name__ == "door"
    with pytest.raises(TypeError, match="unexpected keyword"):  # Python's own
        door(nonsense=1)


def test_fields_of_a_dataclass():
    @dataclass(frozen=True)
    class Options:
        rate: Positive
        steps: Count | None = None
        found: int = field(init=False, default=0)

        def __post_init__(self) -> None:
            check_fields(self)

    assert Options(0.1).steps is None
    with pytest.raises(OptionError, match=r"^Options: steps must be at least 1, an integer, got 0"):
        Options(0.1, 0)
    with pytest.raises(OptionError, match=r"^Options: rate must be positive"):
        Options(-1.0)
