"""Runs the grid as a user has the library, without the type checks of the tests.

``python -m tests.fuzz.run out.jsonl [case]`` writes a line of JSON for each call.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot
import torch

from pyronorm.errors import PyronormError
from tests.fuzz.cases import CASES
from tests.fuzz.kinds import bad_values
from tests.fuzz.values import VALUES
from tests.fuzz.world import World

SECONDS = 60


class TooLong(BaseException):
    """The call has not come back."""


def _interrupt(*_: Any) -> None:
    raise TooLong


def outcome(function: Any, given: dict[str, Any]) -> tuple[str, str]:
    """named, raw, answer or hangs; and what was said."""
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function(**given)
    except PyronormError as error:
        return "named", str(error)
    except TooLong:
        return "hangs", ""
    except BaseException as error:
        places = traceback.extract_tb(error.__traceback__)
        ours = [p for p in places if f"{os.sep}pyronorm{os.sep}" in p.filename]
        at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "outside"
        return "raw", f"{type(error).__name__} at {at}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    return "answer", ""


def calls(only: str = "") -> list[tuple[str, str, str, str]]:
    """Case, argument, kind and value of every call."""
    found = []
    for case, make in CASES.items():
        if only and only not in case:
            continue
        with tempfile.TemporaryDirectory() as folder:
            function, _ = make(World(Path(folder)))
        if isinstance(function, torch.nn.Module):
            function = function.forward
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            for kind, value in bad_values(case, name, parameter):
                found.append((case, name, kind, value))
    return found


def main(out: str, only: str = "") -> None:
    """Run all calls of the cases whose name has ``only`` in it."""
    matplotlib.use("agg")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _interrupt)
    with Path(out).open("w", buffering=1) as file:
        for case, make in CASES.items():  # a case that is wrong itself shows nothing
            if only in case and case not in ("study.run_study", "reference.run"):  # minutes
                with tempfile.TemporaryDirectory() as folder:
                    found, said = outcome(*make(World(Path(folder))))
                print(json.dumps([case, "", "", "as it is", found, said]), file=file)
        for case, name, kind, value in calls(only):
            with tempfile.TemporaryDirectory() as folder:
                function, given = CASES[case](World(Path(folder)))
                found, said = outcome(function, given | {name: VALUES[kind][value]()})
            matplotlib.pyplot.close("all")
            print(json.dumps([case, name, kind, value, found, said]), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
