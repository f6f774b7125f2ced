"""A study's report: one HTML page, Markdown, CSV and plots."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyronorm.study.folder import Folder
from pyronorm.study.study import Plot, Results, Section, Study
from pyronorm.study.table import Column, Table, frame, summarize

__all__ = ["Rendered", "format_table", "write_report"]


@dataclass(frozen=True)
class Rendered:
    """A table as text.

    Attributes:
        title: above the table.
        headings: of the labels, then of the columns.
        labels: number of leading columns that are labels.
        lines: cells of each line, as text.
        best: which cells are significantly best.
        differs: which cells differ significantly from the baseline's.
        seeds: the largest number of seeds of a line.
        columns: the columns that have values.
        baseline: the method that others are compared with.
    """

    title: str
    headings: list[str]
    labels: int
    lines: list[list[str]]
    best: list[list[bool]]
    differs: list[list[bool]]
    seeds: int
    columns: list[Column]
    baseline: str | None

    @property
    def legend(self) -> str:
        """What the numbers and marks are."""
        if self.seeds < 2:
            return "One seed, so there is no spread, and no difference is marked."
        parts = [f"Mean±standard deviation over {self.seeds} seeds."]
        if any(map(any, self.best)):
            parts.append(
                "**Bold**: better than every other line (two-sided t-tests paired by seed, 5 %)."
            )
        if any(map(any, self.differs)):
            parts.append(f"*: differs from `{self.baseline}` (likewise, Holm over the lines).")
        if len(parts) == 1:
            parts.append("No difference is significant (two-sided t-tests paired by seed, 5 %).")
        return " ".join(parts)


def format_table(table: Table) -> Rendered:
    """Text of a table's cells, with their marks."""
    columns, cells = summarize(table)
    labels = len(table.by)
    none = [False] * labels
    return Rendered(
        table.title,
        [*table.by, *(column.heading for column in columns)],
        labels,
        [
            [
                *(f"{label:g}" if isinstance(label, float) else str(label) for label in line),
                *(cell.text(column.digits) for cell, column in zip(row, columns, strict=True)),
            ]
            for line, row in cells.items()
        ],
        [none + [cell.best for cell in row] for row in cells.values()],
        [none + [cell.differs for cell in row] for row in cells.values()],
        max((cell.seeds for row in cells.values() for cell in row), default=0),
        columns,
        table.baseline,
    )


def write_report(study: Study, path: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``table-N.csv``, ``results.csv`` and ``plots/``.

    The HTML page is self-contained: style and plots are in it. It names question, tables with spread
    and significance, definitions, command and environment, and what failed or is missing.

    Args:
        study: the study.
        path: its folder, with at least one finished job.

    Returns:
        The HTML file.

    Raises:
        DataError: if the folder is not that of a study.
    """
    folder = Folder(path)
    record = folder.record
    results = folder.results(study)
    for old in [*path.glob("table-*.csv"), *path.glob("plots/*.png")]:
        old.unlink()  # of an earlier report
    (path / "plots").mkdir(exist_ok=True)
    sections = study.sections(results) if results.rows else []
    tables = [format_table(table) for section in sections for table in section.tables]
    for number, table in enumerate(tables, 1):
        _write_csv(table, path / f"table-{number}.csv")
    if results.rows:
        frame(results.rows).to_csv(path / "results.csv", index=False)
    for section in sections:
        for plot in section.plots:
            _save(plot, path / "plots" / f"{plot.name}.png")
    remarks = _remarks(study, results)
    (path / "report.md").write_text(
        _markdown(study, record, sections, tables, remarks), encoding="utf-8"
    )
    html = path / "report.html"
    html.write_text(_html(study, record, sections, remarks, path), encoding="utf-8")
    return html


def _remarks(study: Study, results: Results) -> list[str]:
    """What the reader has to know before believing the tables."""
    jobs = study.jobs()
    missing = [job for job in jobs if job not in results.seconds and job not in results.failures]
    remarks = sorted(results.notes)
    remarks += [f"`{job}` failed: {text}" for job, text in results.failures.items()]
    if missing:
        remarks.append(
            f"{len(missing)} of {len(jobs)} jobs have not been run yet: "
            + ", ".join(map(str, missing[:5]))
            + (", ..." if len(missing) > 5 else "")
            + "."
        )
    if len(results.commits) > 1:
        remarks.append(
            f"The jobs ran with different versions of the code: {', '.join(sorted(results.commits))}."
        )
    return remarks


def _definitions(tables: Sequence[Rendered]) -> dict[str, str]:
    return {column.heading: column.definition for table in tables for column in table.columns}


def _facts(record: dict[str, Any], results_seconds: float | None = None) -> dict[str, str]:
    facts = {
        "command": record.get("command") or "(run from Python)",
        "configuration": record["fingerprint"],
        "settings": json.dumps(record["settings"]),
    }
    return {**facts, **record["environment"]}


def _write_csv(table: Rendered, file: Path) -> None:
    import pandas as pd

    pd.DataFrame(table.lines, columns=table.headings).to_csv(file, index=False)


def _save(plot: Plot, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=plot.size, layout="constrained")
    FigureCanvasAgg(figure)
    plot.draw(figure)
    figure.savefig(file, dpi=150)


def _marked(table: Rendered) -> list[list[str]]:
    """Cells with their marks in Markdown."""
    return [
        [
            ("**" + text + "**" if best else text) + ("\\*" if differs else "")
            for text, best, differs in zip(*line, strict=True)
        ]
        for line in zip(table.lines, table.best, table.differs, strict=True)
    ]


def _markdown_table(table: Rendered) -> str:
    rule = ["---"] * table.labels + ["---:"] * (len(table.headings) - table.labels)
    lines = [table.headings, rule, *_marked(table)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _markdown(
    study: Study,
    record: dict[str, Any],
    sections: Sequence[Section],
    tables: Sequence[Rendered],
    remarks: Sequence[str],
) -> str:
    parts = [f"# {study.title}: {study.name}", *(f"> {remark}" for remark in remarks)]
    rendered = iter(tables)
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        for _ in section.tables:
            table = next(rendered)
            parts += [
                f"### {table.title}",
                _markdown_table(table),
                table.legend.replace("*:", "\\*:"),
            ]
        for plot in section.plots:
            parts += [f"![{plot.caption}](plots/{plot.name}.png)", plot.caption]
    parts += ["## Definitions"]
    parts += ["\n".join(f"- **{name}**: {text}" for name, text in _definitions(tables).items())]
    parts += ["## How it was made"]
    parts += ["\n".join(f"- {name}: `{text}`" for name, text in _facts(record).items())]
    return "\n\n".join(parts) + "\n"


def _html(
    study: Study,
    record: dict[str, Any],
    sections: Sequence[Section],
    remarks: Sequence[str],
    path: Path,
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markdown_it import MarkdownIt

    markdown = MarkdownIt()
    template = (files("pyronorm.study") / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["markdown"] = markdown.render
    environment.filters["inline"] = markdown.renderInline
    shown = [(section, [format_table(table) for table in section.tables]) for section in sections]

    def image(plot: Plot) -> str:
        data = (path / "plots" / f"{plot.name}.png").read_bytes()
        return "data:image/png;base64," + base64.b64encode(data).decode()

    return environment.from_string(template).render(
        study=study,
        sections=shown,
        remarks=remarks,
        definitions=_definitions([table for _, tables in shown for table in tables]),
        facts=_facts(record),
        image=image,
        zip=zip,
    )
