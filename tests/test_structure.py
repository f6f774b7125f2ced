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
    """The names of classes in isinstance, issubclass, comparisons of types and class patterns."""
    tree = ast.parse(source)
    imported: dict[
        str, str | None
    ] = {}  # None for another library's: Pyro's Normal is no likelihood
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            own = str(node.module).startswith("pyronorm") or node.level > 0
            for name in node.names:
                imported[name.asname or name.name] = name.name if own else None
    for node in ast.walk(tree):
        for expression in _types_in(node):
            for part in ast.walk(expression):
                if isinstance(part, ast.Attribute):  # nn.LayerNorm is torch's, guides.Point is ours
                    if _chain(part.value) & set(ROOMS):
                        yield part.attr
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value
                elif isinstance(part, ast.Name) and part.id not in ROOMS:
                    found = imported.get(part.id, part.id)
                    if found is not None and found[0].isupper():
                        yield found


def _types_in(node: ast.AST) -> list[ast.expr]:
    """The expressions that stand for types, or for their names."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.args[1:2] if node.func.id in ("isinstance", "issubclass") else []
    if isinstance(node, ast.MatchClass):
        return [node.cls]
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(_is_type(side) for side in sides):
            return [side for side in sides if not _is_type(side)]
    return []


def _is_type(node: ast.expr) -> bool:
    """Whether it is ``type(x)``, ``x.__class__``, or the name of one."""
    if isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__"):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr == "__class__"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


def _chain(node: ast.expr) -> set[str]:
    return {
        x.id if isinstance(x, ast.Name) else x.attr for x in ast.walk(node) if hasattr(x, "ctx")
    }


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
        ("type(x) is Batch", ["Batch"]),
        ("x.__class__ in (Batch, nn.Linear)", ["Batch"]),
        ("type(x).__name__ == 'Point'", ["Point"]),
        ("isinstance(x, pn.guides.Point)", ["Point"]),
        ("from pyronorm.guides import Point as P; isinstance(x, P)", ["Point"]),
        ("match x:\n    case Batch(): pass", ["Batch"]),
        ("from torch.distributions import Normal\nmatch x:\n    case Normal(): pass", []),
        ("from pyro.distributions import Normal; isinstance(x, Normal)", []),
        ("from pyronorm.likelihoods import Normal; isinstance(x, Normal)", ["Normal"]),
    ],
)
def test_the_test_sees_them(source, names):
    assert list(classes_asked_for(source)) == names


def test_no_file_is_longer_than_400_lines():
    lengths = {str(p): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name for name, n in lengths.items() if n > 400} == set()
