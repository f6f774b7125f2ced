"""Every public function with wrong values for each of its arguments, as a user has it.

The grid runs in a process of its own: the types that the tests check would hide what a user sees.
``python -m tests.fuzz.run out.jsonl predict`` runs the part of it with that word in its name.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from enum import Enum
from pathlib import Path

import pytest

import pyronorm as pn
from tests.fuzz.cases import CASES
from tests.fuzz.expected import NOT_CALLED, reason_for, rules_without_use

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wrong_values_are_refused_by_name(tmp_path):
    out = tmp_path / "grid.jsonl"
    subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", str(out)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    calls = [tuple(record) for record in records if record[1]]
    counts = Counter(outcome for *_, outcome, _ in calls)
    print(f"{len(calls)} calls: {dict(counts)}")
    wrong = [
        call
        for call in calls
        if call[4] != "named" and reason_for(call[4], call[0], call[1], call[3]) is None
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert not rules_without_use(calls)
    assert len(calls) >= 1_000
    assert counts["raw"] <= 0.02 * len(calls)
    assert counts["hangs"] == 0


def test_every_public_name_that_is_called_is_in_the_grid():
    """What the rooms of the package offer; classes by their constructor or methods."""
    tried = {part for case in CASES for part in case.split(".")}
    left_out = set()
    for room in ["pyronorm", *(f"pyronorm.{m.name}" for m in pkgutil.iter_modules(pn.__path__))]:
        offered = importlib.import_module(room)
        for name in getattr(offered, "__all__", ()) if hasattr(offered, "__path__") else ():
            if _takes_arguments(getattr(offered, name)) and name not in tried:
                left_out.add(name)
    assert left_out == NOT_CALLED


def _takes_arguments(offered: object) -> bool:
    """Whether it is called by users, with something that can be wrong."""
    if not callable(offered) or getattr(offered, "_is_protocol", False):
        return False
    if isinstance(offered, type) and (inspect.isabstract(offered) or issubclass(offered, Enum)):
        return False
    if isinstance(offered, type) and issubclass(offered, dict):
        return True  # which inspect cannot ask for its signature
    parameters = inspect.signature(offered).parameters.values()
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
