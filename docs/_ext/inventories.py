"""What the names of other projects link to, from ``inventories.toml``: the build needs no network."""

from __future__ import annotations

import tomllib
import zlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

SOURCE = Path(__file__).parents[1] / "inventories.toml"


def inventory(project: str, objects: dict[str, dict[str, str]]) -> bytes:
    """The objects, as ``objects.inv`` of version 2.

    Args:
        project: its name.
        objects: places by name, for each kind.
    """
    lines = [
        f"{name} py:{kind} 1 {place} -"
        for kind, places in objects.items()
        for name, place in places.items()
    ]
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version:\n"
    head += "# The remainder of this file is compressed using zlib.\n"
    return head.encode() + zlib.compress("".join(f"{line}\n" for line in lines).encode())


def write(app: Sphinx, config: Config) -> None:
    """Write the inventories beside the pages, and tell intersphinx."""
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for project, found in tomllib.loads(SOURCE.read_text()).items():
        objects = {kind: places for kind, places in found.items() if kind != "url"}
        path = folder / f"{project}.inv"
        path.write_bytes(inventory(project, objects))
        config.intersphinx_mapping[project] = (found["url"], str(path))


def setup(app: Sphinx) -> dict[str, bool]:
    """Before intersphinx reads its mapping."""
    app.connect("config-inited", write, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
