"""What results come from: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["environment"]

_PACKAGES = ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy")


def environment() -> dict[str, str]:
    """Versions, machine and commit that results come from."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "torch": torch.__version__,  # with its build
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **gpu,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source that runs, with a ``+`` if it has been changed; else the release."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    options = {"capture_output": True, "text": True, "timeout": 10}
    try:
        # Installed inside another project's clone, this file is none of its files.
        mine = subprocess.run([*git, "ls-files", "--error-unmatch", file.name], **options)  # type: ignore[call-overload]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **options)  # type: ignore[call-overload]
        changed = subprocess.run([*git, "status", "--porcelain", "--", ".."], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "release"
    if mine.returncode or head.returncode or changed.returncode:
        return "release"
    return str(head.stdout.strip()) + ("+" if changed.stdout.strip() else "")
