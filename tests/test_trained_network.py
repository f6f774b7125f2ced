"""A trained network, as its page shows it: five seeds, served by a process of its own.

Slow, for the default tests; ``make docs-code`` runs it.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student

PAGE = Path(__file__).parents[1] / "docs" / "trained_network.md"
SEEDS = range(5)

SERVE = """
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
found = []
for seed in range(5):
    os.environ["SEED"] = str(seed)
    sys.modules.pop("my_network", None)
    os.chdir(f"seed-{seed}")
    found.append(runpy.run_path("../serve.py")["metrics"])
    os.chdir("..")
print(json.dumps(found))
"""


def programs() -> dict[str, str]:
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return dict(blocks)


def test_the_path_has_at_most_twenty_lines() -> None:
    pages = programs()
    assert list(pages) == ["my_network.py", "choose.py", "serve.py"]
    lines = (pages["choose.py"] + pages["serve.py"]).splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 20
    assert "pyronorm" not in pages["my_network.py"]


def plain_metrics(folder: Path) -> dict[str, float]:
    """Of the trained network itself, by hand."""
    names = runpy.run_path(str(folder.parent / "my_network.py"))
    images, classes = names["load_data"]()[2]
    network = names["make_network"]()
    network.load_state_dict(torch.load(folder / "my_network.pt"))
    with torch.no_grad():
        logits = network.eval()(images)
    sure, found = logits.softmax(-1).max(-1)
    right = (found == classes).double()
    bins = (sure * 15).ceil().long().clamp(1, 15)
    gaps = [
        (right[bins == k] - sure[bins == k]).mean().abs() * (bins == k).double().mean()
        for k in bins.unique()
    ]
    return {
        "accuracy": float(right.mean()),
        "nll": float(F.cross_entropy(logits, classes)),
        "ece": float(sum(gaps)),
    }


def upper_bound(differences: np.ndarray) -> float:
    """Of the 95 % interval of the mean."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() + student.ppf(0.975, len(differences) - 1) * error)


@pytest.mark.slow
def test_what_is_served_is_better_than_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in programs().items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    plain = []
    with torch.random.fork_rng():
        for seed in SEEDS:
            folder = tmp_path / f"seed-{seed}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            monkeypatch.setenv("SEED", str(seed))
            monkeypatch.delitem(sys.modules, "my_network", raising=False)
            runpy.run_path("../my_network.py", run_name="__main__")
            runpy.run_path("../choose.py")
            plain.append(plain_metrics(folder))
    monkeypatch.delitem(sys.modules, "my_network")
    served = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert served.returncode == 0, served.stderr
    found = json.loads(served.stdout.splitlines()[-1])

    before, after = (
        {key: np.array([row[key] for row in rows]) for key in plain[0]} for rows in (plain, found)
    )
    for key in before:
        print(key, "plain", before[key].round(4), "served", after[key].round(4))
    for key in ("nll", "ece"):
        assert upper_bound(after[key] - before[key]) < 0, (key, before, after)
    spread = before["accuracy"].std(ddof=1)
    assert (after["accuracy"] - before["accuracy"]).mean() > -spread
