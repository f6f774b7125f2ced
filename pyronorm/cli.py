"""The command line."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from pyronorm.errors import FileError, OptionError, PyronormError
from pyronorm.files import visible

if TYPE_CHECKING:
    from pyronorm.study import Place, Rendered, Study

__all__ = ["app", "main"]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Jobs = Annotated[int, typer.Option(help="Jobs at once, each a process (on Dask).", min=1)]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Address of a Dask scheduler, tcp://..., whose workers run the jobs instead."
    ),
]
Threads = Annotated[int, typer.Option(help="Threads of each job.", min=1)]
Force = Annotated[bool, typer.Option(help="Remove the results of earlier runs in the folder.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Normalization statistics as latent variables: comparisons and studies.",
)


@app.callback()
def _root() -> None:
    """Normalization statistics as latent variables: comparisons and studies."""


@app.command()
def compare(
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1)] = 5,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    threads: Threads = 1,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/compare"),
    force: Force = False,
) -> None:
    """Compare batch normalization with noise of every kind, where images are few and where they are not.

    On scikit-learn's digits; `pyronorm study` has other data and questions.
    """
    from pyronorm import study

    chosen = study.make_study("compare", quick=True, seeds=tuple(range(seeds)))
    _run(chosen, output, study.Place(device=device), jobs, scheduler, threads, force)


@app.command("study")
def run_study(
    name: Annotated[str | None, typer.Argument(help="Name of the study; none lists them.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A size for a laptop instead of the full one.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of seeds: 0, 1, ...; default as the study says.", min=1),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods separated by commas; default as the study says.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. Default: $PYRONORM_DATA.")
    ] = None,
    allow_incomplete: Annotated[
        bool,
        typer.Option("--allow-incomplete", help="Also take copies of data sets that lack images."),
    ] = False,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    threads: Threads = 1,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. Default: results/NAME-CONFIGURATION."),
    ] = None,
    force: Force = False,
) -> None:
    """Run a study, or go on with one that was interrupted."""
    from pyronorm import study

    if name is None:
        view = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("study", "what it asks"):
            view.add_column(heading)
        for known, entry in study.STUDIES.items():
            view.add_row(known, entry.description)
        Console().print(view)
        return
    chosen = study.make_study(
        name,
        quick=quick,
        seeds=None if seeds is None else tuple(range(seeds)),
        methods=None if methods is None else _names(methods),
    )
    folder = output or Path("results") / f"{name}-{chosen.fingerprint()}"
    _run(
        chosen,
        folder,
        study.Place(data_root, device, allow_incomplete),
        jobs,
        scheduler,
        threads,
        force,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study's results.")],
) -> None:
    """Write the report of a study from what has been run so far: HTML, Markdown, CSV and plots."""
    from pyronorm import study

    restored = study.restore_study(study.Folder(folder).record)
    _say(f"Report: {study.write_report(restored, folder)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(
    chosen: Study,
    folder: Path,
    place: Place,
    processes: int,
    scheduler: str | None,
    threads: int,
    force: bool,
) -> None:
    """Run, print the main table, write the report."""
    from pyronorm import study

    with _resumable(folder):
        results = study.run_study(
            chosen,
            folder,
            place=place,
            processes=processes,
            scheduler=scheduler,
            threads=threads,
            command=_command(),
            force=force,
        )
        for job, text in results.failures.items():
            _complain(Text(visible(f"{job} failed: {text}"), "bold red"))
        page = study.write_report(chosen, folder)
    sections = chosen.sections(results) if results.rows else []
    for table in sections[0].tables if sections else ():
        _print(study.format_table(table))
    for section in sections:
        if section.answer:
            _say(re.sub(r"[*`]", "", section.answer))
    _say(f"Report: {page}")
    if results.failures:
        raise typer.Exit(1)


def _say(text: str) -> None:
    Console().print(visible(text), markup=False)


def _complain(text: Text) -> None:
    Console(stderr=True).print(text)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, with which systems ask a process to end."""


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command in order, and it says how to go on."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if main_thread else None
    try:
        yield
    except KeyboardInterrupt as interruption:
        again = shlex.join(part for part in ["pyronorm", *sys.argv[1:]] if part != "--force")
        _complain(
            Text(
                visible(
                    f"Stopped. What is finished is kept in {folder}; run again to resume: {again}"
                )
            )
        )
        number = signal.SIGTERM if isinstance(interruption, _Terminated) else signal.SIGINT
        raise typer.Exit(128 + number) from None
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _print(table: Rendered) -> None:
    spread = f"{table.seeds} seeds, mean±sd" if table.seeds > 1 else "1 seed"
    view = Table(
        title=Text(visible(f"{table.title}, {spread}")),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for position, heading in enumerate(table.headings):
        justify = "left" if position < table.labels else "right"
        view.add_column(Text(visible(heading)), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for line, best, differs in zip(table.lines, table.best, table.differs, strict=True):
        cells = [
            Text(visible(text) + "*" * other, style="bold" if top else "")
            for text, top, other in zip(line, best, differs, strict=True)
        ]
        view.add_row(*cells)
    _show(view)


def _show(view: Table | Text) -> None:
    # A line that the terminal wraps is better than a number that is cut.
    wide, console = Console(width=10_000), Console()
    Console(width=max(console.width, wide.measure(view).maximum)).print(view)


@app.command()
def reference(
    prior: Annotated[str, typer.Option(help="Prior: standard or batch-noise.")] = "standard",
    posteriors: Annotated[
        str | None, typer.Option(help="Posteriors separated by commas. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything random.", min=0)] = 0,
    quick: Annotated[bool, typer.Option(help="A rough look in a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "results/reference"
    ),
    force: Force = False,
) -> None:
    """Judge every posterior by NUTS, on a network small enough for it, or go on with it."""
    from pyronorm.study import reference as study

    console = Console()
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; choose another --output.")
    if not force and output.exists() and any(output.iterdir()) and not (output / "kept").exists():
        raise OptionError(
            f"{output} has other files; choose another --output, or write there with --force."
        )
    chosen = study.choose_posteriors(posteriors)
    law = study.choose_prior(prior)
    settings = study.Settings.quick(law, seed) if quick else study.Settings(prior=law, seed=seed)
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with _resumable(output):
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(chosen) + 2)
            started = 0

            def report(job: str) -> None:
                nonlocal started
                progress.update(task, description=job, completed=started)
                started += 1
                if not console.is_terminal:
                    console.print(f"{started}/{len(chosen) + 2}  {job}", highlight=False)

            result = study.run(settings, chosen, report, output, command=_command(), force=force)
            progress.update(task, description="done", completed=started)
        study.write(result, output, command=_command())
    headings, rows = study.format_rows(study.table(result))
    view = Table(title=f"digits, {law!r}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for position, heading in enumerate(headings):
        view.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    _show(view)
    _say(f"Report, ArviZ files and plots: {output}")


def main() -> None:
    """Run the command line; errors of the library end it with a message instead of a traceback.

    The status is 2 for what has to be asked for differently, 1 for a failed job or a file that cannot
    be written.
    """
    for argument in sys.argv[1:]:
        name = argument.partition("=")[0]
        if name.startswith("-") and name != visible(name):  # it would be shown as it is
            _complain(_error(f"no option {name}"))
            sys.exit(2)
    try:
        app()
    except PyronormError as error:
        _complain(_error(str(error)))
        sys.exit(1 if isinstance(error, FileError) else 2)


def _error(text: str) -> Text:
    lines = "\n".join(map(visible, text.split("\n")))
    return Text.assemble(("error: ", "bold red"), lines)


def _command() -> str:
    return shlex.join(["pyronorm", *sys.argv[1:]])
