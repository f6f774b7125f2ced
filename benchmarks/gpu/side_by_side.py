"""Functions timed side by side on a device, as rows of a part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.run import Part, Row, attempted
from benchmarks.timing import compare

Maker = Callable[[], Callable[[], object]]
"""Sets something up, and returns what is to be timed."""

_GIB = 2**30
_SECONDS = 15.0  # for the rounds of one table
_FEWEST = 3  # rounds


class Table:
    """Functions that are timed in turn, in random order; the first is what the others are compared with.

    Args:
        part: keeps the rows.
        title: of the table.
        repeats: calls between two looks at the clock.
        rounds: rounds at most.
        needs: seconds to set a function up, as far as is known.
    """

    def __init__(self, part: Part, title: str, repeats: int, rounds: int, needs: float) -> None:
        self.part, self.title = part, title
        self.repeats, self.rounds, self.needs = repeats, rounds, needs
        self._functions: dict[str, Callable[[], object]] = {}
        self._found: dict[str, Row] = {}
        part.say(f" {title}")

    def time(self, makers: Mapping[str, Maker]) -> None:
        """Set all up, run them in turn, and keep a row for each, with its error where it has one."""
        for name, make in makers.items():
            if self.part.has_time(f"{self.title}: {name}", self.needs):
                self._found[name] = attempted(partial(self._set_up, name, make))
                self.part.settings.release()
        measured = attempted(self._compare) if self._functions else {}
        compared = next(iter(makers)) in self._functions
        for name, found in self._found.items():
            figures = measured.get(name, {})
            if "error" not in found and "error" in measured:
                figures = {"error": measured["error"]}
            if not compared:  # there is nothing to compare with
                figures = {k: v for k, v in figures.items() if not k.startswith("ratio")}
            self.part.add({"case": name, "table": self.title, **found, **figures})
        self._functions.clear()
        self.part.settings.release()

    def _set_up(self, name: str, make: Maker) -> Row:
        cuda, synchronize = self.part.settings.cuda, self.part.settings.synchronize
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        function = make()
        function()  # libraries choose their algorithms
        synchronize()
        found: Row = {"set-up s": round(time.perf_counter() - start, 2)}
        function()
        synchronize()
        if cuda:
            peak = torch.cuda.max_memory_allocated() - before
            found["peak GiB"] = round(peak / _GIB, 3)
        self._functions[name] = function
        return found | getattr(function, "about", {})

    def _compare(self) -> dict[str, Any]:
        synchronize, repeats = self.part.settings.synchronize, self.repeats

        def repeated(function: Callable[[], object]) -> None:
            for _ in range(repeats):
                function()
            synchronize()

        start = time.perf_counter()
        for function in self._functions.values():
            repeated(function)
        round_seconds = time.perf_counter() - start
        allowed = min(_SECONDS, self.part.left() / 2) / max(round_seconds, 1e-6)
        rounds = max(_FEWEST, min(self.rounds, int(allowed)))
        functions = {name: partial(repeated, f) for name, f in self._functions.items()}
        measured = compare(functions, rounds, warmup=1)
        for figures in measured.values():
            figures["ms"] = round(figures["ms"] / repeats, 4)
        return measured
