"""The command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pyronorm.errors import OptionError, PyronormError

__all__ = ["app", "main"]

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
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1)] = 3,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods separated by commas, e.g. batch/point,weight/mean-field; a normalizer "
            "alone (analytic) takes all of its methods, all takes all. Default: batch,weight,group."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 15,
    batch_size: Annotated[int, typer.Option(help="Examples per step.", min=2)] = 64,
    num_samples: Annotated[int, typer.Option(help="Draws per prediction.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/compare"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing folder.")] = False,
) -> None:
    """Compare posteriors over normalization statistics with batch normalization's own noise."""
    from pyronorm import study

    console = Console()
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; choose another --output.")
    if output.exists() and not force:
        raise OptionError(
            f"{output} exists; choose another --output, or overwrite it with --force."
        )
    chosen = study.choose_methods(methods)
    settings = study.Settings(
        data=data,
        seeds=tuple(range(seeds)),
        epochs=epochs,
        batch_size=batch_size,
        num_samples=num_samples,
        device=device,
    )
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) * seeds)
        started = 0

        def report(job: str) -> None:
            nonlocal started
            progress.update(task, description=job, completed=started)
            started += 1

        result = study.compare(chosen, settings, report)
        progress.update(task, description="done", completed=started)
    study.write(result, output, command=_command())
    headings, rows = study.format_rows(study.table(result))
    spread = f"{seeds} seeds, mean±sd" if seeds > 1 else "1 seed"
    title = f"{data}, {epochs} epochs, {spread}"
    view = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for position, heading in enumerate(headings):
        view.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    # A line that the terminal wraps is better than a number that is cut.
    wide = Console(width=10_000)
    Console(width=max(console.width, wide.measure(view).maximum)).print(view)
    console.print(f"Report, ArviZ files and plots: {output}", markup=False)


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
    force: Annotated[bool, typer.Option(help="Overwrite an existing folder.")] = False,
) -> None:
    """Judge every posterior by NUTS, on a network small enough for it."""
    from pyronorm.study import reference as study

    console = Console()
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; choose another --output.")
    if output.exists() and not force:
        raise OptionError(
            f"{output} exists; choose another --output, or overwrite it with --force."
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
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) + 2)
        started = 0

        def report(job: str) -> None:
            nonlocal started
            progress.update(task, description=job, completed=started)
            started += 1

        result = study.run(settings, chosen, report)
        progress.update(task, description="done", completed=started)
    study.write(result, output, command=_command())
    headings, rows = study.format_rows(study.table(result))
    view = Table(title=f"digits, {law!r}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for position, heading in enumerate(headings):
        view.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    wide = Console(width=10_000)
    Console(width=max(console.width, wide.measure(view).maximum)).print(view)
    console.print(f"Report, ArviZ files and plots: {output}", markup=False)


def main() -> None:
    """Run the command line; errors of the library end it with a message instead of a traceback."""
    try:
        app()
    except PyronormError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(2)


def _command() -> str:
    return shlex.join(["pyronorm", *sys.argv[1:]])
