"""A part of a run: what it runs on, its deadline, and its rows, an error being a row as well."""

from __future__ import annotations

import functools
import gc
import json
import math
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

_MEASURED = ("seconds", "commit")  # of a row, besides what its case found


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Attributes:
        device: where the library runs; the oracles run on the CPU.
        tiny: small networks, batches and data, to see that everything runs.
        compiled: whether to try ``torch.compile`` too.
        data: folders that may hold parts of CIFAR-10.
        output: folder of the files that are written.
        networks: names of the networks of the comparison.
        epochs: passes over the training images in the comparison.
        seeds: seeds of the comparison.
    """

    device: torch.device
    tiny: bool
    compiled: bool = True
    data: tuple[Path, ...] = ()
    output: Path = Path("results/gpu-tiny")
    networks: tuple[str, ...] = ("all-cnn",)
    epochs: int = 20
    seeds: tuple[int, ...] = (0,)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU of CUDA: graphs and peak memory exist only there."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give memory back, so that a case does not suffer from the one before."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()


class Part:
    """The rows of a part, written to ``gpu-NAME.json`` after each of them.

    Args:
        name: of the part.
        settings: of the run.
        seconds: after which no case is started.
        keep: go on with the rows that the file has already; those of failed cases are run again.
    """

    def __init__(
        self, name: str, settings: Settings, seconds: float, *, keep: bool = False
    ) -> None:
        self.name = name
        self.settings = settings
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self.path = settings.output / f"gpu-{name}.json"
        if keep and self.path.is_file():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.rows = [row for row in known["rows"] if "error" not in row]

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._end - time.monotonic()

    def has_time(self, what: str, needs: float) -> bool:
        """Whether so many seconds are left; where not, the case is named as left out."""
        if self.left() >= needs:
            return True
        self.left_out.append(what)
        self.say(f"  {what}: left out, {max(0.0, self.left()):.0f} s left of {self._seconds:.0f}")
        self.save()
        return False

    def case(
        self, what: str, body: Callable[[], Mapping[str, Any]], *, needs: float = 0.0, **about: Any
    ) -> Row | None:
        """Run a case and keep its row.

        Args:
            what: names the case.
            body: runs it, and returns what the row says.
            needs: seconds that it takes, as far as is known.
            about: goes into the row as well, and marks a case that an earlier run has done.

        Returns:
            The row; None where the time was too short, or it is done.
        """
        identity = {"case": what, **about}
        if any(identity.items() <= row.items() for row in self.rows):
            self.say(f"  {what}: done before")
            return None
        if not self.has_time(what, needs):
            return None
        start = time.monotonic()
        found = attempted(body)
        seconds = round(time.monotonic() - start, 2)
        self.settings.release()
        return self.add({**identity, **found, "seconds": seconds})

    def add(self, row: Row) -> Row:
        """Keep a row, print it and write the file."""
        row = {**row, "commit": commit()}
        self.rows.append(row)
        self.say(f"  {in_words(row)}")
        self.save()
        return row

    def note(self, line: str) -> None:
        """Keep a remark about the part as a whole."""
        self.notes.append(line)
        self.say(f"  {line}")

    @property
    def failed(self) -> list[Row]:
        """Rows with an error, or with a result that is not right."""
        return [row for row in self.rows if "error" in row or row.get("right") is False]

    def save(self) -> None:
        """Write the file."""
        content = {
            "command": f"python -m benchmarks.gpu --part {self.name}={self._seconds:g}",
            "tiny": self.settings.tiny,
            **environment(self.settings.device),
            "notes": self.notes,
            "left_out": self.left_out,
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def say(line: str) -> None:
        """Print at once: who waits for minutes wants to see where it is."""
        print(line, flush=True)


def attempted(body: Callable[[], Mapping[str, Any]]) -> Row:
    """What a case finds, or its error: the next case may work."""
    try:
        return dict(body())
    except Exception as error:
        return {"error": described(error)}


def described(error: Exception) -> str:
    """An error in one line: its class, what it says, and the innermost places."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({places})"


def in_words(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    found = {k: v for k, v in row.items() if k not in ("case", *_MEASURED)}
    words = [f"{key} {short(value)}" for key, value in found.items()]
    return f"{row['case']}: {', '.join(words)}"


def short(value: Any) -> str:
    """A figure with the digits that matter."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return str(value)


def environment(device: torch.device) -> Row:
    """Device and versions, for the file and for the rows of a comparison."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "pyro": version("pyro-ppl"),
        "pyronorm": version("pyronorm"),
    }


@functools.cache
def commit() -> str:
    """The commit of the checkout; empty where git does not know it."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    return ""
