"""The version that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version"]


def installed_version(package: str) -> str:
    """The version of a package, or ``"0+unknown"`` where it is on the path without being installed.

    Args:
        package: its name.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "0+unknown"
