"""The normalizer of examples/own_normalizer.py passes the suite it inherits there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples" / "own_normalizer.py"
spec = importlib.util.spec_from_file_location("own_normalizer", PATH)
example = importlib.util.module_from_spec(spec)
sys.modules["own_normalizer"] = example  # pickle looks classes up there
spec.loader.exec_module(example)


class TestExample(example.TestFilterResponse):
    """Collected as it is in the example."""
