"""``coa-compress report`` and ``compare``: finished runs, rendered again and side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from coa_compress.cli.session import session

_FEWEST = 2


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
) -> None:
    """Render the report of a finished run again."""
    with session(interrupted="the report is as it was, or new"):
        from coa_compress.result import render_again

        page = render_again(run)
    typer.echo(f"report: {page}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Finished runs.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a web page, such as compare.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show runs side by side."""
    with session(interrupted="nothing was changed"):
        from coa_compress.checkpoint import write_file
        from coa_compress.errors import RunError
        from coa_compress.report.comparison import (
            compare_runs,
            comparison_document,
            comparison_html,
            comparison_text,
        )
        from coa_compress.report.reading import report_of
        from coa_compress.report.write import read_report

        if len(runs) < _FEWEST:
            message = f"nothing to compare with {runs[0]}: give two runs or more"
            raise RunError(message)
        reports = {
            name: report_of(read_report(run))
            for name, run in zip(short_names(runs), runs, strict=True)
        }
        found = compare_runs(reports)
        if out is not None:
            write_file(out, comparison_html(found))
    if as_json:
        typer.echo(json.dumps(comparison_document(found, reports), allow_nan=False))
    else:
        typer.echo(comparison_text(found))
        if out is not None:
            typer.echo(f"comparison: {out}")


def short_names(runs: list[Path]) -> list[str]:
    """Return a name for each run, all different: the last parts of its path that tell it apart.

    >>> short_names([Path("a/run"), Path("b/run"), Path("c")])
    ['a/run', 'b/run', 'c']
    >>> short_names([Path("a"), Path("a")])
    ['a', 'a (2)']
    """
    parts = [run.resolve().parts for run in runs]
    names: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and sum(one[-length:] == own[-length:] for one in parts) > 1:
            length += 1
        same = len(own) == length and sum(one == own for one in parts) > 1
        name = own[-1] if same else "/".join(own[-length:])
        seen = sum(one == name or one.startswith(f"{name} (") for one in names)
        names.append(f"{name} ({seen + 1})" if seen else name)
    return names
