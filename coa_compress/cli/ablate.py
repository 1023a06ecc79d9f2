"""``coa-compress ablate``: what each part of a recipe is worth."""

import json
from pathlib import Path
from typing import Annotated

import typer

from coa_compress.cli.session import session
from coa_compress.errors import SettingError


def ablate(  # noqa: PLR0913 - one parameter an option
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, or the name of one in the list.")
    ],
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="More overrides, after the first --set."),
    ] = None,
    *,
    seeds: Annotated[int, typer.Option(help="How often each variant is run.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this variant and the reference alone; repeatable."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override of every variant; a variant's own win. Repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Run variants of a recipe over one cache of finished stages, and compare them."""
    if seeds < 1:
        message = f"--seeds must be at least 1, got {seeds}"
        raise SettingError(message)
    with session(interrupted="the same command goes on where it stopped") as screen:
        from coa_compress.ablation.running import run_ablation
        from coa_compress.ablation.texts import plain_text
        from coa_compress.recipe.ablation import load_ablation

        given = [*(overrides or []), *(extra or [])]
        given += [] if device is None else [f"device={device}"]
        ablation = load_ablation(file, given, only=only or ())
        folder = Path(ablation.out) if out is None else out
        first = ablation.variants[0].recipe.seed
        document = run_ablation(
            ablation,
            range(first, first + seeds),
            folder,
            observer=screen,
            announce=screen.say,
        )
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        typer.echo(plain_text(document))
        typer.echo(f"tables: {folder / 'ablation.md'}")
