"""What is imported, and when."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, torch, pyro
before = len(sys.modules)
import pyronorm as pn
heavy = {"matplotlib", "torchmetrics", "pandas", "arviz", "lightning_fabric", "sklearn", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert len(sys.modules) - before < 600, len(sys.modules) - before
known = len(sys.modules)
x, y = torch.randn(40, 3), torch.arange(40) % 2
network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=40)
pn.estimate_population_statistics(model, x)
pn.evaluate(model, pn.guides.BatchNoise(model, 9), (x, y))
assert "torchmetrics" not in sys.modules
assert "plots" in dir(pn)
assert "matplotlib" not in sys.modules
assert pn.plots.plot_reliability
assert "matplotlib" not in sys.modules
"""


def test_imports_are_few_and_late() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_other_attributes_are_not_made_up() -> None:
    import pyronorm

    assert not hasattr(pyronorm, "plot")
