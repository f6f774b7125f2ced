"""What a run says while it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import rich.console

from pyronorm.study import run_study
from tests.study.fakes import fake


def test_without_a_terminal_a_line_per_finished_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = fake(methods=("a[/x]", "b\x1b[31m"), trouble=(("a[/x]", 0, "error"),))
    run_study(study, tmp_path / "s")
    lines = [line.rpartition(": ") for line in capsys.readouterr().out.splitlines()]
    assert [start for start, _, _ in lines] == [
        "1/4  a[/x], seed 0: failed: ValueError",
        "2/4  b\\x1b[31m, seed 0",
        "3/4  a[/x], seed 1",
        "4/4  b\\x1b[31m, seed 1",
    ]
    assert lines[0][2] == "out of luck"
    assert all(end.endswith(" s") for _, _, end in lines[1:])
    run_study(study, tmp_path / "s")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "3 of 4 jobs are finished already"
    assert second.startswith("4/4  a[/x], seed 0: failed")


def test_on_a_terminal_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    study = fake(methods=("a[/x]", "b\x1b]0;title\x07"), trouble=(("a[/x]", 0, "error"),))
    results = run_study(study, tmp_path / "s")
    assert len(results.rows) == 3
    out = capsys.readouterr().out
    assert "4/4" in out
    assert "done" in out
    assert "\x1b]0" not in out


def test_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_study(fake(seeds=(0,)), tmp_path / "s", progress=False)
    assert capsys.readouterr().out == ""
