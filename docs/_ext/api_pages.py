"""One page for each public object, and a table of a room's objects.

The pages are written to ``docs/api/objects`` when a build begins. ``.. objects:: pyronorm.guides`` makes
a table of what the room exports and the top level does not; names below the directive choose some of it.
A page that is in no table is a warning of Sphinx, so that none is forgotten.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOMS = (
    *("pyronorm", "baselines", "conversion", "datasets", "diagnostics", "distributions", "errors"),
    *("guides", "infer", "latents", "laws", "likelihoods", "networks", "normalizers", "plots"),
    *("priors", "randomness", "stats", "stats.propagation", "study", "study.reference", "testing"),
)


def public(room: str) -> list[str]:
    """The classes and functions of a room, those of the top level only there."""
    top = importlib.import_module("pyronorm")
    module = importlib.import_module(room)
    elsewhere = [] if module is top else [getattr(top, name) for name in top.__all__]
    found = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, item in found.items()
        if (inspect.isclass(item) or inspect.isfunction(item))
        and not any(item is other for other in elsewhere)
    ]


def page(room: str, name: str) -> str:
    """The source of the page of an object."""
    item = getattr(importlib.import_module(room), name)
    head = f"{name}\n{'=' * len(name)}\n\n.. currentmodule:: {room}\n\n"
    if not inspect.isclass(item):
        return f"{head}.. autofunction:: {name}\n"
    return f"{head}.. autoclass:: {name}\n   :members:\n   :show-inheritance:\n"


def write_pages(app: Sphinx) -> None:
    """Write what is new or has changed, and remove the rest."""
    folder = Path(app.srcdir) / "api" / "objects"
    folder.mkdir(exist_ok=True)
    rooms = [room if room == "pyronorm" else f"pyronorm.{room}" for room in ROOMS]
    pages = {f"{room}.{name}.rst": page(room, name) for room in rooms for name in public(room)}
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


class Objects(SphinxDirective):
    """A table of a room's objects, each with a page."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table, by autosummary."""
        room = self.arguments[0]
        names = [line.strip() for line in self.content if line.strip()]
        about = [] if names else [f".. automodule:: {room}", ""]  # its docstring
        lines = [
            f".. currentmodule:: {room}",
            "",
            *about,
            ".. autosummary::",
            "   :toctree: objects",
            "   :nosignatures:",
            "",
        ]
        lines += [f"   {name}" for name in names or public(room)]
        return self.parse_text_to_nodes("\n".join(lines))


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Checks of a suite are listed on the pages that say how to use it."""
    return True if name.startswith("test_") else None


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Signatures with types alone: what is checked of an argument stands in its description."""

    def plain(text: str | None) -> str | None:
        return text and re.sub(
            r"~?(?:typing\.)?Annotated\[([^'()]*?), (?:~?[\w.]*Range\(.*?\)|'[^']*')\]", r"\1", text
        )

    return plain(signature), plain(returns)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it."""
    app.connect("builder-inited", write_pages, priority=100)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", shorten)
    app.add_directive("objects", Objects)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
