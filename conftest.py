"""Runs the code blocks of README and docs: ``make docs-code``.

- ``python`` blocks of a page run from top to bottom in one namespace. What a page leaves to the reader
  (a network, data) is made in ``<!-- invisible-code-block: python ... -->`` comments.
- Blocks with ``>>>`` are doctests: what they print has to be what the page says.
- Commands in ``sh`` blocks are held against the command line's options, the Makefile and the files.
- ``text`` blocks are output. Any other language, or none, fails.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sybil import Document, Example, Region, Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

_ROOT = Path(__file__).parent

# Long loops are cut short here, so that pages can say what a reader would run.
_MOST = {
    "fit": {"epochs": 1},
    "run_nuts": {"num_samples": 32, "warmup": 4, "max_tree_depth": 2},
    "collect_bank": {"num_batches": 32},
    "simulation_based_calibration": {"num_simulations": 25, "num_draws": 9},
}


def _at_most(function: Callable[..., object], most: dict[str, int]) -> Callable[..., object]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def quick(*args: object, **kwargs: object) -> object:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        for name, value in most.items():
            given = call.arguments[name]
            call.arguments[name] = value if given is None else min(given, value)
        return function(*call.args, **call.kwargs)

    return quick


# Files that a reader has to place are not here: random values of the same form take their place.
def _random_images(data_root: object = None, download: bool = False) -> object:
    from pyronorm.datasets import ImageData, Split

    train, test = (Split(torch.rand(n, 1, 4, 4), torch.arange(n) % 10) for n in (16_000, 4_000))
    return ImageData("random", train, test, num_classes=10)


def _random_table(name: str, data_root: object = None, *, download: bool = False) -> object:
    from pyronorm.datasets import load_diabetes

    return load_diabetes()


@pytest.fixture
def documentation(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A page's surroundings: short loops, seeds, no windows, an empty folder."""
    import matplotlib
    import matplotlib.pyplot as plt

    import pyronorm as pn

    matplotlib.use("agg")
    torch.set_num_threads(1)
    for room in (pn, pn.diagnostics):
        for name, most in _MOST.items():
            if hasattr(room, name):
                monkeypatch.setattr(room, name, _at_most(getattr(room, name), most))
    for name in ("mnist", "fashion-mnist"):
        monkeypatch.setitem(pn.datasets.DATASETS, name, _random_images)
    monkeypatch.setitem(pn.datasets.OUTLIERS, "notmnist", _random_images)
    monkeypatch.setattr(pn.datasets.registry, "load_uci", _random_table)
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    plt.close("all")


def _check_commands(example: Example) -> None:
    for line in example.parsed.splitlines():
        if words := shlex.split(line, comments=True):
            problem = _problem(words)
            assert problem is None, f"{line.strip()}: {problem}"


def _problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None. Nothing is run."""
    while re.match(r"[A-Z_]+=", words[0]):  # variables of its environment
        words = words[1:]
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):(?!=)", (_ROOT / "Makefile").read_text(), re.MULTILINE)
            targets = [target for target in targets if "=" not in target]
            return next((f"no target {name}" for name in targets if name not in known), None)
        case ["pyronorm", *arguments]:
            return _command_line_problem(arguments)
        case ["python", "-m", "pytest" | "pip", *_]:
            return None
        case ["python", "-m", module, *_]:
            return None if importlib.util.find_spec(module) else f"no module {module}"
        case ["python", file, *_]:
            return None if (_ROOT / file).is_file() else f"no file {file}"
        case ["torchrun", "--nproc-per-node", _, file]:
            return None if (_ROOT / file).is_file() else f"no file {file}"
        case ["pip", "install", requirement]:
            extra = re.fullmatch(r"(?:pyronorm|\.)(?:\[([\w,]+)\])?", requirement)
            known = importlib.metadata.metadata("pyronorm").get_all("Provides-Extra") or []
            asked = (extra[1] or "").split(",") if extra else ["?"]
            return None if {*asked} <= {"", *known} else f"extras are {', '.join(known)}"
    return "conftest.py does not know how to check this command"


def _command_line_problem(arguments: list[str]) -> str | None:
    import typer

    from pyronorm.cli import app

    name, *options = arguments
    commands = typer.main.get_command(app).commands  # typer may bring a Click of its own
    if name not in commands:
        return f"no command {name}"
    try:
        commands[name].make_context(name, options)
    except Exception as error:
        return getattr(error, "message", None) or repr(error)
    return None


class _UnknownLanguages:
    """A parser for the blocks that no other parser takes: they fail."""

    known = re.compile(r"python|sh|text|\{")
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)$\n", re.MULTILINE))

    def __call__(self, document: Document) -> Iterator[Region]:
        for block in self.lexer(document):
            language = block.lexemes["language"].strip()
            if not self.known.match(language):
                yield Region(block.start, block.end, language, self.evaluate)

    def evaluate(self, example: Example) -> None:
        raise AssertionError(
            f"a code block in language {example.parsed!r}: say python, sh (commands) or text (output)."
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let ArviZ's warnings about the few draws of shortened loops pass."""
    poor = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
    for item in items:
        if isinstance(item, SybilItem):
            item.add_marker(poor)  # posteriors cut short are poor, and ArviZ says so


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser("sh", _check_commands),
        _UnknownLanguages(),
    ],
    patterns=["README.md", "docs/*.md", "docs/results/*.md", "benchmarks/README.md"],
    path=str(_ROOT),
    fixtures=["documentation"],
).pytest()
