"""The report: one page that stands on its own, whatever is in the names, the errors and the folder."""

from __future__ import annotations

import base64
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from packaging.version import Version
from scipy import stats

from pyronorm.errors import DataError, OptionError
from pyronorm.study import (
    Better,
    Column,
    Folder,
    Job,
    Outcome,
    Plot,
    Results,
    Row,
    Section,
    format_table,
    run_study,
    write_report,
)
from pyronorm.study.records import read_record, write_record
from tests.study.fakes import Fake, FakeSettings, fake
from tests.study.marked import Table

HOSTILE = "<script>alert('x')</script>|`a`*b*_c_[d](http://e)\\"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A strict reader: tags have to be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((tuple(self.open), data))

    def of(self, tag: str) -> list[str]:
        return [data.strip() for path, data in self.text if tag in path]


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def markdown_of(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def rendered_markdown(folder: Path) -> Page:
    """The Markdown report as GitHub shows it."""
    return Page(
        MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown_of(folder))
    )


def cells_of(page: Page, path: Path) -> list[list[str]]:
    text = (path / "report.html").read_text(encoding="utf-8")
    body = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body]


FILES = re.compile(r"results\.csv|table-\d+\.csv|arviz/[A-Za-z0-9.=-]+\.nc")


def foreign(page: Page) -> set[str]:
    """The tags, without links to files of the report."""
    return {t for t, a in page.tags if t != "a" or not FILES.fullmatch(str(a.get("href")))}


@dataclass(frozen=True)
class Made(Fake):
    """A study whose report is what the test says."""

    shown: Any = field(default=(), compare=False)
    values: Any = field(default=None, compare=False)

    def sections(self, results: Results) -> list[Section]:
        return list(self.shown(results))


NLL = Column("nll", "NLL", 3, Better.LOWER, "Nats & <bits>.")
SECONDS = Column("seconds", "train | s", 1, Better.NEITHER, "Of training.")
VALUES = {
    "good/x": [(0.10, 3.0), (0.21, 4.0), (0.32, 3.5)],
    "base/y": [(1.10, 1.0), (1.25, 1.2), (1.31, 1.1)],
    "bad/z": [(2.00, 1.0), (2.15, 1.3), (2.31, 1.0)],
}


def written(
    path: Path,
    values: Mapping[str, list[tuple[float, float]]] = VALUES,
    table: Mapping[str, Any] | None = None,
    section: Mapping[str, Any] | None = None,
    name: str = "made",
    start: bool = True,
) -> Made:
    """A folder with these values, and its report."""

    def shown(results: Results) -> list[Section]:
        options = {
            "title": "Main",
            "columns": [NLL, SECONDS],
            "baseline": "base/y",
            **(table or {}),
        }
        return [
            Section(
                **{
                    "title": "Out",
                    "tables": [Table(rows=results.rows, **options)],
                    **(section or {}),
                }
            )
        ]

    number = max(map(len, values.values()))
    settings = FakeSettings(methods=tuple(values), seeds=tuple(range(number)))
    study = Made(name, settings, shown)
    folder = Folder(path)
    folder.start(study, f"pyronorm study {name}")
    for job in study.jobs():
        if job.seed < len(values[job.name]):
            nll, seconds = values[job.name][job.seed]
            row = Row(job.name, job.seed, {"nll": nll, "seconds": seconds})
            folder.write(study, job, Outcome([row]), 90.0)
    write_report(study, path)
    return study


# the page


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a plot, run and reported."""
    path = tmp_path_factory.mktemp("ran") / "s"
    study = fake(seeds=(0, 1, 2))
    run_study(study, path, command="pyronorm study fake --quick", progress=False)
    assert write_report(study, path) == path / "report.html"
    return path


def test_the_files(ran: Path) -> None:
    found = {str(p.relative_to(ran)) for p in ran.rglob("*") if p.is_file()}
    assert {f for f in found if not f.startswith("jobs/")} == {
        "report.html",
        "report.md",
        "results.csv",
        "table-1.csv",
        "plots/draws.png",
        "study.json",
        ".lock",
    }


def test_the_page_stands_on_its_own(ran: Path) -> None:
    text = (ran / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if tag == "a":  # a file beside the page
                assert name == "href"
                assert (ran / str(value)).is_file()
            elif name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert str(value).startswith("data:image/png;base64,")
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"@import|url\(", text)
    (image,) = [a for tag, a in page.tags if tag == "img"]
    assert image["alt"] == "The draws."
    data = base64.b64decode(str(image["src"]).partition(",")[2])
    assert data == (ran / "plots" / "draws.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_what_and_how(ran: Path) -> None:
    page = page_of(ran)
    assert page.of("h1") == ["Fake: fake"]
    assert page.of("h2") == ["Outcome", "End", "Definitions", "How it was made", "Files"]
    assert page.of("h3") == ["Numbers"]
    assert page.of("em") == ["came"]
    facts = dict(zip(page.of("dt"), page.of("dd"), strict=True))
    assert facts["command"] == "pyronorm study fake --quick"
    assert facts["configuration"] == fake().fingerprint()
    assert '"seeds": [0, 1, 2]' in facts["settings"]
    assert facts["time of the jobs"].endswith(" s")
    assert {"torch", "pyro-ppl", "numpy", "commit", "python", "threads"} <= set(facts)


def test_markup_in_a_section_is_text(ran: Path) -> None:
    assert "Nothing <b>more</b>." in page_of(ran).of("p")
    assert not page_of(ran).of("b")


def test_phones_print_and_dark(ran: Path) -> None:
    text = (ran / "report.html").read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text


def test_definitions_are_of_the_columns_shown(ran: Path) -> None:
    names = page_of(ran).of("dt")
    assert names[:3] == ["torch", "numpy", "python"]
    assert "never" not in names
    assert "never" not in markdown_of(ran)


def test_a_report_is_the_same_again(ran: Path) -> None:
    before = {n: (ran / n).read_bytes() for n in ("report.html", "report.md", "table-1.csv")}
    write_report(fake(seeds=(0, 1, 2)), ran)
    assert {n: (ran / n).read_bytes() for n in before} == before


# marks


def test_marks_and_legend(tmp_path: Path) -> None:
    written(tmp_path)
    head, *lines = cells_of(page_of(tmp_path), tmp_path)
    assert head == ["method", "NLL", "train | s"]
    assert lines == [
        ["good/x", "0.210±0.110*", "3.5±0.5"],
        ["base/y", "1.220±0.108", "1.1±0.1"],
        ["bad/z", "2.153±0.155*", "1.1±0.2"],
    ]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<td class="best">([^<]*)<', html) == ["0.210±0.110*"]
    legend = (
        "Mean±standard deviation over 3 seeds. Bold: better than every other line (two-sided t-tests "
        "paired by seed, 5 %). *: differs from base/y (two-sided t-tests paired by seed, 5 % for the "
        "column, Holm)."
    )
    assert re.sub("<[^>]*>", "", re.findall(r'<p class="legend">(.*?)</p>', html)[0]) == legend
    page = rendered_markdown(tmp_path)
    assert "| **0.210±0.110**\\* |" in markdown_of(tmp_path)
    assert page.of("strong")[:2] == ["0.210±0.110", "Bold"]
    assert legend in "".join(data for path, data in page.text if "p" in path)


def test_the_legend_explains_only_the_marks_there_are(tmp_path: Path) -> None:
    same = {name: [(0.1, 1.0), (0.3, 1.2), (0.2, 1.1)] for name in ("a", "b")}
    written(tmp_path, same)
    text = markdown_of(tmp_path)
    assert "No difference is significant" in text
    assert "Bold" not in text
    assert "differs" not in text


def test_the_legend_of_one_seed(tmp_path: Path) -> None:
    written(tmp_path, {name: values[:1] for name, values in VALUES.items()})
    assert "One seed, so there is no spread, and no difference is marked." in markdown_of(tmp_path)
    assert "±" not in markdown_of(tmp_path)
    assert "differs" not in markdown_of(tmp_path)


def test_the_legend_of_lines_with_fewer_seeds(tmp_path: Path) -> None:
    written(tmp_path, {**VALUES, "bad/z": VALUES["bad/z"][:2]})
    assert "over up to 3 seeds." in markdown_of(tmp_path)


def test_the_legend_within_a_condition() -> None:
    rows = [
        Row(m, s, {"nll": v + 0.1 * s * (v + 1)}, {"batch size": n, "width": 0.5})
        for n in (2, 32)
        for m, v in (("a", 0.0), ("b", 5.0))
        for s in range(3)
    ]
    table = format_table(
        Table("t", rows, [NLL], ("batch size", "width", "method"), ("batch size", "width"))
    )
    assert "better than every other line of the same batch size and width (two" in table.legend
    assert table.lines[0][:3] == ["2", "0.5", "a"]
    assert table.labels == 3
    assert [line[3] for line in table.best] == [True, False, True, False]


def test_details_are_folded_and_in_the_same_csv(tmp_path: Path) -> None:
    words = {"good/x": "the *good* one"}
    written(tmp_path, table={"columns": [NLL], "details": [SECONDS], "words": words})
    page = page_of(tmp_path)
    assert "summary" in {tag for tag, _ in page.tags}
    assert [text for path, text in page.text if "summary" in path] == ["Main: further columns"]
    assert [text for path, text in page.text if "th" in path] == [
        *("method", "NLL"),
        *("method", "train | s"),
    ]
    labels = [text for path, text in page.text if "td" in path and "good" in text]
    assert labels == ["the *good* one", "good/x"] * 2
    assert r"| the \*good\* one (good/x) |" in markdown_of(tmp_path)
    names = ["method", "nll_mean", "nll_sd", "seconds_mean", "seconds_sd"]
    assert list(pd.read_csv(tmp_path / "table-1.csv").columns) == names
    assert not (tmp_path / "table-2.csv").exists()


def test_the_answers_come_first(tmp_path: Path) -> None:
    written(tmp_path, section={"answer": "It **is** so.", "text": "Asked."})
    shown = [text for _, text in page_of(tmp_path).text]
    assert shown.index("is") < shown.index("Out") < shown.index("Asked.")
    text = markdown_of(tmp_path)
    assert text.index("It **is** so.") < text.index("## Out") < text.index("Asked.")


def test_differences_have_intervals(tmp_path: Path) -> None:
    column = replace(NLL, interval=True)
    written(tmp_path, table={"columns": [column], "resampled": 0.25})
    lines = {line[0]: line[1] for line in cells_of(page_of(tmp_path), tmp_path)[1:]}
    values = [nll for nll, _ in VALUES["good/x"]]
    low, high = stats.t.interval(0.95, 2, 0.21, statistics.stdev(values) * (1 / 3 + 0.25) ** 0.5)
    assert lines["good/x"].rstrip("*") == f"+0.210 ({low:+.3f} to {high:+.3f})"
    assert "of differences mean and 95 % interval" in markdown_of(tmp_path)


# hostile names


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    values = {HOSTILE: VALUES["good/x"], "base/y": VALUES["base/y"]}
    written(
        tmp_path,
        values,
        table={"title": HOSTILE, "columns": [replace(NLL, heading=HOSTILE, definition=HOSTILE)]},
        section={"title": HOSTILE},
        name=HOSTILE,
    )
    page = page_of(tmp_path)
    shown = [text for _, text in page.text]
    # title, command, table's and section's titles, label, heading and definition
    assert sum(HOSTILE in text for text in shown) >= 7
    markdown = rendered_markdown(tmp_path)
    for made in (page, markdown):
        assert not foreign(made) & {"script", "a", "em"}
    rows = [line for line in markdown_of(tmp_path).splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert markdown.of("table").count("1.220±0.108") == 1
    assert "".join(markdown.of("table")).count(HOSTILE) == 2
    assert [tag for tag, _ in markdown.tags].count("td") == 4


def test_a_hostile_baseline_in_the_legend(tmp_path: Path) -> None:
    values = {HOSTILE: VALUES["base/y"], "good": VALUES["good/x"]}
    written(tmp_path, values, table={"baseline": HOSTILE})
    for page in (page_of(tmp_path), rendered_markdown(tmp_path)):
        assert HOSTILE in page.of("code")
        assert not foreign(page) & {"script", "a", "em"}


def test_a_hostile_error(tmp_path: Path) -> None:
    study = fake(trouble=(("a/x", 0, "library"),))
    run_study(study, tmp_path, progress=False)
    write_report(study, tmp_path)
    for page in (page_of(tmp_path), rendered_markdown(tmp_path)):
        assert "DataError: <script>alert('|')</script> `code` *star* [x](y)" in page.of("code")
        assert not foreign(page) & {"script", "a"}


# what is missing


def test_remarks_on_failures_and_missing_jobs(tmp_path: Path) -> None:
    study = fake(seeds=tuple(range(5)), trouble=(("b/y", 0, "error"),))
    run_study(
        replace(study, settings=replace(study.settings, seeds=(0,))), tmp_path, progress=False
    )
    Folder(tmp_path).start(study, "more")
    write_report(study, tmp_path)
    text = re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "b/y, seed 0 failed: ValueError: out of luck" in text
    assert "8 of 10 jobs have not been run yet: a/x, seed 1, " in text
    assert "a/x, seed 3, ..." in text
    assert "> `b/y, seed 0` failed: `ValueError: out of luck`" in markdown_of(tmp_path)
    assert len(cells_of(page_of(tmp_path), tmp_path)) == 2  # heading and a/x


def test_remarks_on_mixed_commits(tmp_path: Path) -> None:
    study = written(tmp_path)
    file = tmp_path / "jobs" / f"{Job('base/y', 1).key}.json"
    record = read_record(file, "")
    commit = record["environment"]["commit"]
    record["environment"]["commit"] = "0123456789+"
    write_record(file, record)
    write_report(study, tmp_path)
    assert "different versions of the code: " in markdown_of(tmp_path)
    assert "0123456789+" in markdown_of(tmp_path)
    assert commit in markdown_of(tmp_path)


_HOSTILE = (
    "![x](https://example.org/a.png) <script>alert(1)</script> <img src=//example.org/b> "
    "[x](javascript:alert(1)) &lt;b&gt; \x1b[31mred # `code` *star*"
)


@pytest.mark.parametrize("start", ["", "- ", "1. ", "+ ", "--- ", "=== ", "# ", "> "])
def test_a_note_is_text_whatever_it_says(tmp_path: Path, start: str) -> None:
    """No image is loaded, no tag and no link made, and it reads as it was."""
    study = written(tmp_path)
    found = []
    for note in ("harmless", start + _HOSTILE):
        for job in study.jobs():
            row = Row(job.name, job.seed, {"nll": 0.5 + job.seed, "seconds": 1.0})
            Folder(tmp_path).write(study, job, Outcome([row], note=note), 1.0)
        write_report(study, tmp_path)
        found.append((page_of(tmp_path), rendered_markdown(tmp_path)))
    for plain, page in zip(*found, strict=True):
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
        text = " ".join("".join(data for _, data in page.text).split())
        assert (start + _HOSTILE).replace("\x1b", "\\x1b") in text
        assert "\x1b" not in text


def test_images_from_elsewhere_are_not_loaded(tmp_path: Path) -> None:
    text = "Look: ![x](https://example.org/a.png) and ![y](file:///etc/passwd)."
    written(tmp_path, section={"text": text})
    assert not [a for tag, a in page_of(tmp_path).tags if tag == "img"]


def test_no_remarks_when_all_is_well(ran: Path) -> None:
    assert not [a for _, a in page_of(ran).tags if a.get("class") == "remark"]
    assert "\n> " not in markdown_of(ran)


def test_nothing_finished_at_all(tmp_path: Path) -> None:
    study = written(tmp_path)
    Folder(tmp_path).start(study, "again", force=True)
    (tmp_path / "results.csv").write_text("of an earlier report")
    write_report(study, tmp_path)
    assert page_of(tmp_path).of("h2") == ["How it was made"]
    assert "9 of 9 jobs have not been run yet" in markdown_of(tmp_path)
    assert "## Definitions" not in markdown_of(tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no study\.json"):
        write_report(fake(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# files


def test_csv_has_numbers(tmp_path: Path) -> None:
    written(tmp_path)
    table = pd.read_csv(tmp_path / "table-1.csv", index_col="method")
    assert list(table.columns) == ["nll_mean", "nll_sd", "seconds_mean", "seconds_sd"]
    for name, values in VALUES.items():
        frame = pd.DataFrame(values, columns=["nll", "seconds"])
        for column in frame:
            assert table.loc[name, f"{column}_mean"] == pytest.approx(
                frame[column].mean(), rel=1e-14
            )
            assert table.loc[name, f"{column}_sd"] == pytest.approx(frame[column].std(), rel=1e-12)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert [tuple(row) for row in rows.to_numpy().tolist()] == [
        (name, seed, *VALUES[name][seed]) for seed in range(3) for name in VALUES
    ]


def test_csv_of_values_that_are_not_finite(tmp_path: Path) -> None:
    written(
        tmp_path, {"a": [(math.nan, 1.0), (0.5, math.inf)], "b": [(math.nan, 2.0), (math.nan, 3.0)]}
    )
    table = pd.read_csv(tmp_path / "table-1.csv", index_col="method")
    assert table.loc["a", "nll_mean"] == 0.5
    assert table.loc["a", "seconds_mean"] == math.inf
    assert math.isnan(table.loc["b", "nll_mean"])
    assert cells_of(page_of(tmp_path), tmp_path)[1:] == [
        ["a", "0.500", "inf"],
        ["b", "–", "2.5±0.7"],
    ]


def test_tables_and_plots_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    plot = Plot("first one", "It.", lambda figure: None)
    study = written(tmp_path, section={"plots": [plot]})
    assert (tmp_path / "plots" / "first-one.png").is_file()
    (tmp_path / "table-7.csv").write_text("old")
    less = replace(study, shown=lambda results: [Section("Out")])
    write_report(less, tmp_path)
    assert not list(tmp_path.glob("table-*.csv"))
    assert not list((tmp_path / "plots").iterdir())


def test_plots_of_the_same_name_are_refused(tmp_path: Path) -> None:
    plots = [Plot("a/b", "One.", lambda figure: None), Plot("a-b", "Two.", lambda figure: None)]
    with pytest.raises(OptionError, match="two plots of made"):
        written(tmp_path, section={"plots": plots})


def test_links_in_the_markdown(tmp_path: Path) -> None:
    plot = Plot("n (1)", 'A [1] *b* "c" <d>', lambda figure: None)
    written(tmp_path, section={"plots": [plot]})
    (image,) = [a for tag, a in rendered_markdown(tmp_path).tags if tag == "img"]
    assert (tmp_path / str(image["src"])).is_file()
    # Before 4.3 markdown-it-py drops escaped characters from a picture's text.
    dropped = "" if Version(version("markdown-it-py")) >= Version("4.3") else "[]*<>"
    assert image["alt"] == "".join(c for c in plot.caption if c not in dropped)
    (image,) = [a for tag, a in page_of(tmp_path).tags if tag == "img"]
    assert image["alt"] == plot.caption


def test_figures_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    written(tmp_path, section={"plots": [Plot("p", "P.", lambda figure: figure.subplots())]})
    assert plt.get_fignums() == before


def test_several_sections_and_tables(tmp_path: Path) -> None:
    study = written(tmp_path)

    def shown(results: Results) -> list[Section]:
        first = Table("First", results.rows, [NLL])
        second = Table("Second", results.rows, [SECONDS], baseline="bad/z")
        third = Table("Third", results.rows[:1], [NLL])
        return [Section("One", "", [first, second]), Section("Two", "", [third])]

    write_report(replace(study, shown=shown), tmp_path)
    assert page_of(tmp_path).of("h3") == ["First", "Second", "Third"]
    assert re.findall(r"^#+ (\w+)$", markdown_of(tmp_path), re.MULTILINE)[:5] == [
        "One",
        "First",
        "Second",
        "Two",
        "Third",
    ]
    lengths = [len(pd.read_csv(tmp_path / f"table-{i}.csv")) for i in (1, 2, 3)]
    assert lengths == [3, 3, 1]
    # definitions once each
    assert page_of(tmp_path).of("dt")[:3] == ["NLL", "train | s", "command"]
