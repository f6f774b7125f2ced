"""Rules of the house that hold for the whole package, read off its source.

Only a room itself, and for normalizers the registry of layer classes, may know its concrete kinds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from inspect import isabstract
from pathlib import Path

import pytest

import pyronorm
from pyronorm import guides, likelihoods, normalizers

PACKAGE = Path(pyronorm.__file__).parent
ROOMS = {"normalizers": normalizers, "guides": guides, "likelihoods": likelihoods}


def concrete(room: str) -> set[str]:
    """The classes of a room that can be instantiated and extend its interface."""
    base = {
        "normalizers": normalizers.Normalizer,
        "guides": guides.Guide,
        "likelihoods": likelihoods.Likelihood,
    }[room]
    found = [vars(ROOMS[room])[name] for name in ROOMS[room].__all__]
    return {
        c.__name__
        for c in found
        if isinstance(c, type) and issubclass(c, base) and c is not base and not isabstract(c)
    }


def classes_asked_for(source: str) -> Iterator[str]:
    """The names of classes in isinstance and issubclass."""
    tree = ast.parse(source)
    others = {  # Pyro's Normal is no likelihood
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("pyronorm")
        for name in node.names
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            for part in ast.walk(node.args[1]):
                # nn.LayerNorm is torch's, guides.Point is ours
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    if part.value.id in ROOMS:
                        yield part.attr
                elif isinstance(part, ast.Name) and part.id[0].isupper() and part.id not in others:
                    yield part.id


def test_no_room_asks_for_the_concrete_kinds_of_another():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        foreign = set().union(*(concrete(room) for room in ROOMS if room != place.parts[0]))
        found |= {
            (place.as_posix(), n) for n in classes_asked_for(path.read_text()) if n in foreign
        }
    assert found == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("isinstance(x, Batch)", ["Batch"]),
        ("isinstance(x, (Group, guides.Point))", ["Group", "Point"]),
        ("issubclass(type(x), nn.LayerNorm)", []),
        ("type(x) is Batch", []),
        ("from pyro.distributions import Normal; isinstance(x, Normal)", []),
        ("from pyronorm.likelihoods import Normal; isinstance(x, Normal)", ["Normal"]),
    ],
)
def test_the_test_sees_them(source, names):
    assert list(classes_asked_for(source)) == names


def test_no_file_is_longer_than_400_lines():
    lengths = {p.name: len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name for name, n in lengths.items() if n > 400} == set()
