"""Files are whole or not there; one run per folder; nothing commands the terminal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyronorm.archive import read_archive
from pyronorm.errors import FileError, OptionError
from pyronorm.files import (
    BESIDE,
    digest_of,
    make_folder,
    only_run,
    remove_leftovers,
    visible,
    write_file,
)
from tests.limits import files_no_larger_than

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("content", "found"),
    [("Zürich\n", "Zürich\n".encode()), (b"\x00\xff", b"\x00\xff"), ([b"a", b"", b"bc"], b"abc")],
)
def test_what_is_written(tmp_path: Path, content, found) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"what was there before, and longer")
    for given in (path, str(path)):
        write_file(given, content)
        assert path.read_bytes() == found
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_it_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    write_file(tmp_path / "link", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "link").read_text() == "mine"


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()])
def test_what_ends_it_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*args: object) -> None:
        raise error

    path = tmp_path / "a"
    write_file(path, "before")
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        write_file(path, "after")
    if expected is FileError:
        assert str(raised.value) == f"{path}: cannot be written, No space left on device."
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_too_large_for_its_place(tmp_path: Path) -> None:
    """As a full disk: the system refuses in the middle of the content."""
    with (
        files_no_larger_than(10_000),
        pytest.raises(FileError, match="cannot be written, File too large"),
    ):
        write_file(tmp_path / "a", b"x" * 20_000)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere/a: cannot be written, No such file"):
        write_file(tmp_path / "nowhere" / "a", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file/below: cannot be written, Not a directory"):
        make_folder(tmp_path / "file" / "below")
    assert make_folder(str(tmp_path / "a" / "b")).is_dir()


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pyronorm.files import write_file\n"
        "Path.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file(sys.argv[1], 'x')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.")
    (tmp_path / ".mine.part").write_text("")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.part"]


def test_digests_differ_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(tmp_path / "a") == known


# one run


def test_one_run_works_and_the_other_says_why_not(tmp_path: Path) -> None:
    with only_run(tmp_path, "study"):
        message = f"another run works in {tmp_path}: process {os.getpid()} on .*, since 20"
        for folder in (tmp_path, str(tmp_path)):
            with pytest.raises(OptionError, match=message), only_run(folder, "study"):
                pass
        code = (
            "import sys; from pyronorm.files import only_run\nwith only_run(sys.argv[1], 's'): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()} on" in other.stderr
    with only_run(tmp_path, "study"):
        pass
    assert {p.name for p in tmp_path.iterdir()} <= BESIDE


def test_a_killed_run_does_not_stand_in_the_way(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pyronorm.files import only_run\n"
        "with only_run(sys.argv[1], 's'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "running.txt").exists()
    with only_run(tmp_path, "study"):
        assert f"process {os.getpid()} " in (tmp_path / "running.txt").read_text()
    assert not (tmp_path / "running.txt").exists()


def test_a_folder_that_cannot_be_written_is_no_running_study(
    tmp_path: Path, no_locks: None
) -> None:
    with (
        pytest.raises(FileError, match="cannot be written, Read-only file system"),
        only_run(tmp_path, "study"),
    ):
        pass


# the terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Zürich [bold] 😀", "plain Zürich [bold] 😀"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("caf\udce9", r"caf\udce9"),
        (Path("a\x1bb"), r"a\x1bb"),
    ],
)
def test_control_characters_are_seen(text: object, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_names_that_no_file_can_have(tmp_path: Path, name) -> None:
    with pytest.raises(FileError, match="cannot be written, "):
        write_file(tmp_path / name, "text")
    with pytest.raises(FileError, match="cannot be written, "):
        make_folder(tmp_path / name)
    with pytest.raises(FileError, match="cannot be read, "):
        read_archive(tmp_path / name, "draws")
