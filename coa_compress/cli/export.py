"""``coa-compress export``: a network as a file for another runtime."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coa_compress.cli.arguments import Model, Weights
from coa_compress.cli.session import session, staged


def export(  # noqa: PLR0913 - one parameter an option
    source: Model,
    *,
    weights: Weights = None,
    form: Annotated[Literal["onnx"], typer.Option("--format", help="What to write.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; else NAME.onnx here.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width of the input.")
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let batch, height and width be any.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Write a model as ONNX, compared with torch."""
    with session(interrupted="nothing was written") as screen:
        from coa_compress.exporting import export_onnx
        from coa_compress.sources import open_source, parse_size

        opened = open_source(
            source, size=None if size is None else parse_size(size), weights=weights
        )
        path = Path(f"{name_of(source)}.{form}") if out is None else out
        written = staged(
            screen,
            "export",
            lambda: export_onnx(opened.model, opened.example, path, dynamic=dynamic),
        )
    if as_json:
        typer.echo(json.dumps({"model": source, **asdict(written), "path": str(path)}))
    else:
        typer.echo(sentence(written))


def sentence(written: Any) -> str:
    """Return what was written and how it compares, as text.

    Args:
        written: What ``export_onnx`` returned.
    """
    text = f"{written.path}: {written.file_bytes / 1e6:.2f} MB, opset {written.opset}"
    if written.difference is None:
        return f"{text}, not compared with torch"
    sizes = " and ".join("x".join(map(str, shape)) for shape in written.sizes)
    return f"{text}, within {written.difference:.1e} of torch at {sizes}"


def name_of(source: str) -> str:
    """Return a short name for a file made of a model.

    >>> name_of("runs/dehaze/"), name_of("builtin:teacher"), name_of("my.nets:Net")
    ('dehaze', 'teacher', 'Net')
    """
    parts = [part for part in re.split(r"[:/\\]", source) if part.strip(".")]
    return parts[-1] if parts else "model"
