"""How objects show themselves: a line when printed, a table in a notebook, axes for a plot."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor, nn

from pyronorm.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["axes_or_new", "briefly", "checked_axes", "displayed", "frame", "html_table", "in_line"]

LONGEST = 300
"""Characters of a line, at most."""
_SHOWN = 10  # rows of a table

Kind = TypeVar("Kind", bound=type)


def briefly(value: Any) -> str:
    """A value in a few characters: numbers to four digits, tensors by their shape and range.

    Args:
        value: anything.
    """
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (Tensor, np.ndarray)):
        return _of_tensor(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {briefly(part)}" for key, part in [*value.items()][:3])
        return "{" + inside + (f", … {len(value)} in all" if len(value) > 3 else "") + "}"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(map(briefly, value[:3]))
        return f"[{inside}{f', … {len(value)} in all' if len(value) > 3 else ''}]"
    return _cut(str(value) if isinstance(value, str) else repr(value), 80)


def in_line(name: str, content: Mapping[str, Any]) -> str:
    """The line ``Name(key=value, ...)``, no longer than :data:`LONGEST`.

    Args:
        name: of the class.
        content: what to show.
    """
    text = ", ".join(f"{key}={briefly(value)}" for key, value in content.items())
    return _cut(f"{name}({text})", LONGEST)


def html_table(title: str, columns: Mapping[str, Sequence[Any]], shown: int = _SHOWN) -> str:
    """A table for notebooks, with all text escaped.

    Args:
        title: a line above it.
        columns: values by heading, equally many.
        shown: rows at most; a line says how many more there are.
    """
    rows = [*zip(*columns.values(), strict=True)]
    more = f"<p>… {len(rows):,} rows in all</p>" if len(rows) > shown else ""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(briefly(v))}</td>" for v in row) + "</tr>"
        for row in rows[:shown]
    )
    return (
        f"<div><p>{html.escape(title)}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}</div>"
    )


def displayed(kind: Kind) -> Kind:
    """Give a class a table in notebooks, and a line when printed, as far as it has none.

    What is in them is what its method ``_content()`` says, a dictionary, or else its fields. The table
    has the columns of its method ``_columns()``, where it has one. Dataclasses are ``repr=False``.

    Args:
        kind: the class.
    """
    own = vars(kind)
    if "__repr__" not in own and issubclass(kind, nn.Module):
        kind.__repr__ = _module_line  # type: ignore[method-assign]
    elif "__repr__" not in own and is_dataclass(kind):
        kind.__repr__ = _line  # type: ignore[method-assign]
    if "_repr_html_" not in own:
        kind._repr_html_ = _table  # type: ignore[attr-defined]
    return kind


def _line(self: Any) -> str:
    """The object in a line."""
    return in_line(type(self).__name__, _content(self))


def _module_line(self: Any) -> str:
    """The module in a line, without its parts."""
    return _cut(f"{type(self).__name__}({self.extra_repr()})", LONGEST)


def _table(self: Any) -> str:
    """The table, in a notebook."""
    columns: Callable[[], Mapping[str, Sequence[Any]]] | None = getattr(self, "_columns", None)
    if columns is not None:
        return html_table(_cut(repr(self).splitlines()[0], LONGEST), columns())
    content = _content(self)
    title = _cut(repr(self).splitlines()[0], LONGEST)
    return html_table(title, {"": [*content], "value": [*content.values()]}, 100)


def _content(self: Any) -> Mapping[str, Any]:
    if hasattr(self, "_content"):
        found: Mapping[str, Any] = self._content()
        return found
    assert is_dataclass(self)
    return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}


def frame(columns: Mapping[str, Sequence[Any]], where: str) -> pd.DataFrame:
    """A table of pandas.

    Args:
        columns: values by heading.
        where: who makes it, for the message.

    Raises:
        ImportError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            f"{where}.to_dataframe needs pandas: pip install 'pyronorm[study]'."
        ) from error
    return pd.DataFrame(dict(columns))


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure.

    Args:
        ax: axes of matplotlib, or None.

    Raises:
        OptionError: if they are none.
    """
    if ax is not None:
        return checked_axes(ax)
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.5), layout="constrained")[1]


def checked_axes(ax: Any) -> Axes:
    """Refuse what are no axes.

    Args:
        ax: what was given.

    Raises:
        OptionError: if they are none.
    """
    if isinstance(ax, type) or not hasattr(ax, "axhline"):
        raise OptionError(f"plots: expected Axes of matplotlib, plt.subplots()[1], got {ax!r}.")
    found: Axes = ax
    return found


def _of_tensor(value: Tensor | np.ndarray) -> str:
    if value.ndim == 0:
        return briefly(value.item())
    numbers = value.detach() if isinstance(value, Tensor) else value
    shape = "×".join(map(str, value.shape))
    if not len(value) > 0 or value.ndim > 1 or len(value) > 4:
        return f"{shape} values"
    return "[" + ", ".join(briefly(number) for number in numbers.tolist()) + "]"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2] + "…" + text[-1]
