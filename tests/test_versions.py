"""The versions named in pyproject.toml are those that the tests of each environment run with."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements() -> list[Requirement]:
    """What users and the tests install, without documentation and development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["study"], *extras["download"]]
    texts += [*extras["distributed"], *extras["test"]]
    return [Requirement(text) for text in texts if not text.startswith("pyronorm")]


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in pairs}


def test_lowest_versions_are_the_floors() -> None:
    lowest = pins("constraints-lowest.txt")
    for requirement in requirements():
        [floor] = requirement.specifier
        assert floor.operator == ">=", f"{requirement}: say the lowest version"
        assert lowest.pop(requirement.name.lower()) == Version(floor.version), requirement.name
    assert not lowest, f"pinned, but nothing asks for them: {', '.join(lowest)}"


def test_development_versions_are_within_the_ranges() -> None:
    developed = pins("constraints.txt")
    for requirement in requirements():
        version = developed[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"
