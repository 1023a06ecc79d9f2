"""The commands; torch is imported only once a command runs."""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coa_compress._version import __version__
from coa_compress.cli.ablate import ablate
from coa_compress.cli.arguments import Device, Model, TaskName, Weights
from coa_compress.cli.export import export
from coa_compress.cli.measures import measures_json, measures_table
from coa_compress.cli.profile import profile
from coa_compress.cli.report import compare, report
from coa_compress.cli.sensitivity import sensitivity
from coa_compress.cli.session import session, staged
from coa_compress.cli.team import Strategy, said_elsewhere, team_of
from coa_compress.errors import CoaError, DataError, ModelError

Kind = Literal["recipes", "scorers", "allocators", "tasks", "stages", "losses", "features"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compress a trained network to a budget, distill it, adapt it to real images.",
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: What follows the program name; None for those of this process.

    Returns:
        0, 2 after a mistake of the user, or 130 after an interruption.

    >>> run(["--version"])
    coa-compress 0.1.0
    0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table must not die on a narrow code page
    try:
        app(args=arguments, prog_name="coa-compress")
    except CoaError as error:
        if not said_elsewhere(error):
            typer.echo(f"error: {error}", err=True)
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _say_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        typer.echo(f"coa-compress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version


@app.command()
def recipe(  # noqa: PLR0913 - one parameter an option
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, or the name of one in the list.")
    ],
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="More overrides, after the first --set."),
    ] = None,
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, such as seed=1; repeatable."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show groups, budget and cost; train nothing.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="FACTORY", help="A network of yours, as package.module:factory."),
    ] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where randomness starts.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an earlier run stopped.")
    ] = True,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Finished stages that runs share.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs, or processes on the CPU, that train together.")
    ] = None,
    strategy: Annotated[
        Strategy, typer.Option(help="fsdp splits what is trained among the devices.")
    ] = "ddp",
) -> None:
    """Run every stage of a recipe and write one report."""
    again = "the same command goes on where it stopped"
    again = again if resume else f"without --no-resume {again}"
    team = team_of(devices, strategy, os.environ)
    said = "nothing was changed" if plan else again
    with session(interrupted=said, quiet=team.follows) as screen:
        from coa_compress.compressor import Compressor
        from coa_compress.recipe.files import load_recipe

        loaded = load_recipe(file, [*(overrides or []), *(extra or [])])
        loaded = replace(
            loaded,
            model=loaded.model if model is None else model,
            weights=loaded.weights if weights is None else str(weights),
            out=loaded.out if out is None else str(out),
            device=loaded.device if device is None else device,
            seed=loaded.seed if seed is None else seed,
        )
        compressor = Compressor(recipe=loaded, observer=screen)
        if plan:
            lines = [compressor.plan()]
        else:
            result = compressor.run(
                resume=resume, cache=cache, processes=team.launch(compressor.device)
            )
            lines = [result.summary, f"report: {result.report_path}"]
    for line in [] if team.follows else lines:
        typer.echo(line)


@app.command("apply")
def apply_student(
    source: Model,
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="A folder of images.")],
    *,
    out: Annotated[Path, typer.Option(help="Where results go.")],
    weights: Weights = None,
    task: TaskName = "",
    device: Device = "auto",
) -> None:
    """Use a student on a folder of images."""
    _check_folder(photos)
    if out.resolve() == photos.resolve():
        message = f"--out {out} is the folder of the photos, which would be lost: choose another"
        raise DataError(message)
    with session(interrupted="files written so far are complete") as screen:
        from coa_compress.copying import placed
        from coa_compress.opening import open_student
        from coa_compress.provenance import usable_device

        place = usable_device(device)
        model, user = open_student(source, weights, task=task)
        use = _deployable(user).apply_folder
        placed(model, place)
        written = staged(screen, "apply", lambda: use(model, photos, out, screen.on_progress))
    typer.echo(f"{len(written)} files in {out}")


@app.command()
def evaluate(
    source: Model,
    *,
    data: Annotated[Path, typer.Option(help="A folder of pairs.")],
    weights: Weights = None,
    task: TaskName = "",
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON only; what is not finite is null.")
    ] = False,
) -> None:
    """Measure a model on a folder of pairs."""
    _check_folder(data)
    with session(interrupted="nothing was changed") as screen:
        from coa_compress.copying import placed
        from coa_compress.opening import open_student
        from coa_compress.provenance import usable_device

        place = usable_device(device)
        model, judge = open_student(source, weights, task=task)
        measure = _deployable(judge).evaluate_folder
        placed(model, place)
        measures = staged(screen, "evaluate", lambda: measure(model, data, screen.on_progress))
    if as_json:
        typer.echo(measures_json(measures, model=source, data=str(data)))
    else:
        typer.echo(measures_table(measures))


for _command in (ablate, profile, sensitivity, export, report, compare):
    app.command()(_command)


@app.command("list")
def list_names(
    kind: Annotated[
        Kind | None, typer.Argument(help="What to list; everything if not given.")
    ] = None,
) -> None:
    """List the recipes that come along, and what a recipe may name."""
    from coa_compress.cli.catalog import CATALOG

    for name, entries in CATALOG.items():
        if kind is None:
            typer.echo(f"{name}:")
        if kind in (None, name):
            typer.echo("\n".join(("  " if kind is None else "") + line for line in entries()))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        message = f"{folder} {what}: give a folder of images"
        raise DataError(message)


def _deployable(task: Any) -> Any:
    from coa_compress.protocols import Deployable

    if not isinstance(task, Deployable):
        message = (
            f"task {type(task).__name__} cannot work on folders: "
            "it has no apply_folder and evaluate_folder"
        )
        raise ModelError(message)
    return task
