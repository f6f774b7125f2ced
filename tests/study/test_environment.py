"""What results say they come from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

import pyronorm as pn
from pyronorm.study import environment as module


def commit_of(monkeypatch: pytest.MonkeyPatch, file: Path) -> str:
    monkeypatch.setattr(module, "__file__", str(file))
    return module._commit()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a package of two rooms, one commit."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    for room in ("study", "layers"):
        (tmp_path / "package" / room).mkdir(parents=True)
        (tmp_path / "package" / room / "code.py").write_text("1\n")
    (tmp_path / "notes.md").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(tmp_path, *who, "commit", "-q", "-m", "first")
    return tmp_path


def git(path: Path, *arguments: str) -> str:
    command = ["git", "-C", str(path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_the_package_was_changed(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = clone / "package" / "study" / "code.py"
    head = git(clone, "rev-parse", "--short=10", "HEAD")
    assert commit_of(monkeypatch, code) == head
    (clone / "notes.md").write_text("2\n")  # not of the package
    assert commit_of(monkeypatch, code) == head
    (clone / "package" / "layers" / "code.py").write_text("2\n")
    assert commit_of(monkeypatch, code) == head + "+"


def test_a_release_inside_another_clone_has_not_its_commit(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = clone / "venv" / "study"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("1\n")
    assert commit_of(monkeypatch, installed / "code.py") == "release"


def test_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._commit() == "release"


def test_the_environment() -> None:
    environment = module.environment()
    assert environment["torch"] == torch.__version__
    assert environment["pyronorm"] == pn.__version__
    assert environment["cores"] == str(os.cpu_count())
