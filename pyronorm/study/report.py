"""A study's report: one HTML page, Markdown, CSV and plots."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.files import StrPath, make_folder, write_file
from pyronorm.study.folder import Folder
from pyronorm.study.markup import code, duration, escape
from pyronorm.study.study import Plot, Results, Section, Study, file_name
from pyronorm.study.table import Better, Cell, Column, Table, frame, summarize

__all__ = ["Rendered", "format_table", "write_report"]


@dataclass(frozen=True)
class Rendered:
    """A table as text.

    Attributes:
        title: above the table.
        headings: of the labels, then of the columns.
        labels: number of leading columns that are labels.
        lines: cells of each line, as text.
        cells: the numbers behind them, without the labels.
        best: which cells are significantly best.
        differs: which cells differ significantly from the baseline's.
        seeds: the largest number of seeds of a cell.
        columns: the columns that have values.
        within: labels within whose values lines are compared.
        baseline: the method that others are compared with.
        tested: whether any lines were compared.
        resampled: whether the tests are those for random splits of one data set.
        least_seeds: with fewer seeds no difference is marked.
        words: the methods of the lines in words, where they have any.
        folded: whether the table has further columns of one above it.
    """

    title: str
    headings: list[str]
    labels: int
    lines: list[list[str]]
    cells: list[list[Cell]]
    best: list[list[bool]]
    differs: list[list[bool]]
    seeds: int
    columns: list[Column]
    within: Sequence[str]
    baseline: str | None
    tested: bool
    resampled: bool
    least_seeds: int
    words: Sequence[str]
    folded: bool = False

    @property
    def _methods(self) -> list[str]:
        place = self.headings.index("method") if self.words else 0
        return [line[place] for line in self.lines] if self.words else []

    @property
    def legend(self) -> str:
        """What the numbers and marks are, in Markdown."""
        if self.seeds < 2:
            return "One seed, so there is no spread, and no difference is marked."
        fewer = any(0 < cell.seeds < self.seeds for row in self.cells for cell in row)
        over = f"over {'up to ' if fewer else ''}{self.seeds} seeds"
        parts = [f"Mean±standard deviation {over}."]
        if any(column.interval for column in self.columns):
            parts = [f"Mean±standard deviation {over}; of differences mean and 95 % interval."]
        if any(map(any, self.best)):
            same = escape(" and ".join(self.within))
            rivals = f" of the same {same}" if same else ""
            parts.append(
                f"**Bold**: better than every other line{rivals} (two-sided t-tests paired "
                "by seed, 5 %)."
            )
        if any(map(any, self.differs)):
            words = dict(zip(self._methods, self.words, strict=True)).get(str(self.baseline))
            baseline = escape(words) if words else code(str(self.baseline))
            parts.append(
                f"\\*: differs from {baseline} (two-sided t-tests paired by seed, "
                "5 % for the column, Holm)."
            )
        if self.tested and self.seeds < self.least_seeds:
            parts.append(f"Fewer than {self.least_seeds} seeds: no difference is marked.")
        elif len(parts) == 1 and self.tested:
            parts.append("No difference is significant (two-sided t-tests paired by seed, 5 %).")
        if len(parts) > 1 and self.resampled:
            parts.append("The tests allow for the examples that random splits share.")
        return " ".join(parts)


@checked
def format_table(table: Table) -> Rendered:
    """Text of a table's cells, with their marks; details are left out."""
    columns, cells = summarize(table)
    method = list(table.by).index("method") if "method" in table.by else None
    labels = len(table.by)
    none = [False] * labels
    return Rendered(
        table.title,
        [*table.by, *(column.heading for column in columns)],
        labels,
        [
            [
                *(f"{label:g}" if isinstance(label, float) else str(label) for label in line),
                *(
                    cell.text(column.digits, column.interval)
                    for cell, column in zip(row, columns, strict=True)
                ),
            ]
            for line, row in cells.items()
        ],
        list(cells.values()),
        [none + [cell.best for cell in row] for row in cells.values()],
        [none + [cell.differs for cell in row] for row in cells.values()],
        max((cell.seeds for row in cells.values() for cell in row), default=0),
        columns,
        table.within,
        table.baseline,
        len(cells) > 1
        and (table.baseline is not None or any(c.better is not Better.NEITHER for c in columns)),
        table.resampled > 0,
        table.least_seeds,
        [table.words.get(str(line[method]), "") for line in cells] if method is not None else [],
    )


def _tables(table: Table) -> list[Rendered]:
    """The table, and one of its details if it has any."""
    found = [format_table(table)]
    folded = format_table(replace(table, columns=table.details, details=()))
    if folded.columns:
        title = f"{table.title}: further columns"
        found.append(replace(folded, title=title, folded=True))
    return found


@checked
def write_report(study: Study, path: StrPath) -> Path:
    """Write ``report.html``, ``report.md``, ``table-N.csv``, ``results.csv`` and ``plots/``.

    The answer comes first. The HTML page is self-contained: style and plots are in it, and no other
    image is loaded; the other files and the ArviZ data are linked. It names question, tables with
    spread and significance, definitions, command and environment, and what failed or is missing.

    Args:
        study: the study.
        path: its folder; what is not finished is missing in the report, which says so.

    Returns:
        The HTML file.

    Raises:
        DataError: if the folder is not that of a study, or a file in it is damaged.
        OptionError: if two plots have the same name.
        FileError: if the report cannot be written.
    """
    folder = Folder(path)
    record = folder.record
    results = folder.results(study)
    sections = study.sections(results) if results.rows else []
    rendered = [
        (section, [one for table in section.tables for one in _tables(table)])
        for section in sections
    ]
    tables = [table for section in sections for table in section.tables]
    plots = [plot for section in sections for plot in section.plots]
    if len({_image(plot) for plot in plots}) < len(plots):
        raise OptionError(f"report: two plots of {study.name} have the same name.")
    content: dict[str, str | bytes] = {
        f"table-{number}.csv": _csv(table) for number, table in enumerate(tables, 1)
    }
    if results.rows:
        content["results.csv"] = frame(results.rows).to_csv(index=False)
    images = {_image(plot): _png(plot) for plot in plots}
    remarks = _remarks(study, results)
    facts = _facts(record, results)
    links = [*content, *_arviz_files(folder, results)]
    content |= images
    content["report.md"] = _markdown(study, rendered, facts, remarks, links)
    content["report.html"] = _html(study, rendered, facts, remarks, links, images)
    make_folder(folder.path / "plots")
    for name, value in content.items():
        write_file(folder.path / name, value)
    for pattern in ("table-*.csv", "plots/*.png", "results.csv"):
        for old in folder.path.glob(pattern):
            if old.relative_to(folder.path).as_posix() not in content:
                old.unlink(missing_ok=True)  # of an earlier report
    return folder.path / "report.html"


def _remarks(study: Study, results: Results) -> list[str]:
    """What the reader has to know before believing the tables, in Markdown."""
    jobs = study.jobs()
    missing = [job for job in jobs if job not in results.seconds and job not in results.failures]
    done = len(results.seconds)
    remarks = [
        escape(note) if number == done else f"{escape(note)} ({number} of {done} jobs)"
        for note, number in Counter(results.notes.values()).items()
    ]
    remarks += [f"{code(str(job))} failed: {code(text)}" for job, text in results.failures.items()]
    if missing:
        remarks.append(
            f"{len(missing)} of {len(jobs)} jobs have not been run yet: "
            + ", ".join(code(str(job)) for job in missing[:5])
            + (", ..." if len(missing) > 5 else "")
            + "."
        )
    for name in dict.fromkeys(key for there in results.environments.values() for key in there):
        values = {there.get(name, "none") for there in results.environments.values()}
        if len(values) > 1:
            what = "versions of the code" if name == "commit" else f"environments, {name}"
            differing = ", ".join(map(escape, sorted(values)))
            remarks.append(f"The jobs ran with different {escape(what)}: {differing}.")
    return remarks


def _definitions(tables: Sequence[Rendered]) -> dict[str, str]:
    """By heading; of two tables that mean different things by one, the first says it."""
    found: dict[str, str] = {}
    for column in (column for table in tables for column in table.columns):
        found.setdefault(column.heading, column.definition)
    return found


def _facts(record: dict[str, Any], results: Results) -> dict[str, str]:
    return {
        "command": record["command"] or "(run from Python)",
        "configuration": record["fingerprint"],
        "settings": json.dumps(record["settings"]),
        "time of the jobs": duration(sum(results.seconds.values())),
        **record["environment"],
    }


def _arviz_files(folder: Folder, results: Results) -> list[str]:
    """The ArviZ files, as seen from the folder."""
    return [
        file.relative_to(folder.path).as_posix()
        for found in results.arviz.values()
        for file in found.values()
    ]


def _csv(whole: Table) -> str:
    """Labels, and of each column mean and standard deviation with all their digits."""
    import pandas as pd

    table = format_table(replace(whole, columns=(*whole.columns, *whole.details), details=()))
    names = [f"{c.name}_{what}" for c in table.columns for what in ("mean", "sd")]
    lines = [
        [*line[: table.labels], *(x for cell in cells for x in (cell.mean, cell.sd))]
        for line, cells in zip(table.lines, table.cells, strict=True)
    ]
    made = pd.DataFrame(lines, columns=[*table.headings[: table.labels], *names])
    return str(made.to_csv(index=False))


def _image(plot: Plot) -> str:
    return f"plots/{file_name(plot.name)}.png"


def _png(plot: Plot) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=plot.size, layout="constrained")
    FigureCanvasAgg(figure)
    plot.draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _marked(table: Rendered) -> list[list[str]]:
    """Cells with their marks in Markdown."""
    found = [
        [
            ("**" + escape(text) + "**" if best else escape(text)) + ("\\*" if differs else "")
            for text, best, differs in zip(*line, strict=True)
        ]
        for line in zip(table.lines, table.best, table.differs, strict=True)
    ]
    if any(table.words):
        method = table.headings.index("method")
        for line, words in zip(found, table.words, strict=True):
            line[method] = f"{escape(words)} ({line[method]})" if words else line[method]
    return found


def _heading(study: Study) -> str:
    return study.title if study.title == study.name else f"{study.title}: {study.name}"


def _markdown_table(table: Rendered) -> str:
    rule = ["---"] * table.labels + ["---:"] * (len(table.headings) - table.labels)
    lines = [[escape(heading) for heading in table.headings], rule, *_marked(table)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _markdown(
    study: Study,
    rendered: Sequence[tuple[Section, Sequence[Rendered]]],
    facts: dict[str, str],
    remarks: Sequence[str],
    links: Sequence[str],
) -> str:
    parts = [f"# {escape(_heading(study))}", *(f"> {r}" for r in remarks)]
    parts += [section.answer for section, _ in rendered if section.answer]
    for section, tables in rendered:
        parts.append(f"## {escape(section.title)}")
        if section.text:
            parts.append(section.text)
        for table in tables:
            parts += [f"### {escape(table.title)}", _markdown_table(table), table.legend]
        for plot in section.plots:
            caption = escape(plot.caption)
            parts += [f"![{caption}]({_image(plot)})", caption]
    definitions = _definitions([table for _, tables in rendered for table in tables])
    if definitions:
        parts += ["## Definitions"]
        parts += ["\n".join(f"- **{escape(n)}**: {escape(d)}" for n, d in definitions.items())]
    parts += ["## How it was made"]
    parts += ["\n".join(f"- {escape(name)}: {code(text)}" for name, text in facts.items())]
    if links:
        parts += ["## Files", "\n".join(f"- [{escape(link)}]({link})" for link in links)]
    return "\n\n".join(parts) + "\n"


def _html(
    study: Study,
    rendered: Sequence[tuple[Section, Sequence[Rendered]]],
    facts: dict[str, str],
    remarks: Sequence[str],
    links: Sequence[str],
    images: Mapping[str, bytes],
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markdown_it import MarkdownIt

    # An error's text may look like a tag; an image from elsewhere tells who reads the page.
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")
    template = (files("pyronorm.study") / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["markdown"] = markdown.render
    environment.filters["inline"] = markdown.renderInline

    def image(plot: Plot) -> str:
        return "data:image/png;base64," + base64.b64encode(images[_image(plot)]).decode()

    return environment.from_string(template).render(
        heading=_heading(study),
        sections=rendered,
        answers=[section.answer for section, _ in rendered if section.answer],
        remarks=remarks,
        definitions=_definitions([table for _, tables in rendered for table in tables]),
        facts=facts,
        links=links,
        image=image,
        zip=zip,
    )
