"""Every public function with wrong values for each of its arguments, as a user has it.

The grid runs in a process of its own: the types that the tests check would hide what a user sees.
``python -m tests.fuzz.run out.jsonl predict`` runs the part of it with that word in its name.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import pyronorm as pn
from tests.fuzz.cases import CASES
from tests.fuzz.expected import reason_for

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
    assert len(calls) >= 1_000
    assert counts["raw"] <= 0.02 * len(calls)
    assert counts["hangs"] == 0


def test_every_public_function_is_in_the_grid():
    """What the top of the package offers is tried; classes by their constructor or methods."""
    others = {"ConversionReport", "init_to_neutral", "refresh_draws", "calibrate"}
    tried = {name.partition(".")[0] for name in CASES}
    for name in pn.__all__:
        offered = getattr(pn, name)
        if callable(offered) and not inspect.ismodule(offered):
            assert name in tried | others, f"{name} is in no case of tests/fuzz/cases.py"
