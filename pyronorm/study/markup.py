"""Text as Markdown shows it: names, errors and durations."""

from __future__ import annotations

import re

from pyronorm.files import visible

__all__ = ["code", "duration", "escape"]


def escape(text: str) -> str:
    """Text as Markdown that shows it as it is, in a table too."""
    shown = re.sub(r"([\\`*_{}\[\]<>|~#]|&(?=#?\w+;))", r"\\\1", _line(text))
    # What would begin a list or a rule.
    start = re.match(r"([-+=]|\d+[.)])(?=[-= ]|$)", shown)
    return f"{start[0][:-1]}\\{shown[start.end() - 1 :]}" if start else shown


def _line(text: str) -> str:
    """Text in one line, without control characters."""
    return visible(" ".join(text.split()))


def code(text: str) -> str:
    """Text as code in Markdown: between more backticks than it has in a row."""
    text = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}" if text else ""


def duration(seconds: float) -> str:
    """Time with units, and no more digits than matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
