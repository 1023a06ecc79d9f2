"""``coa-compress profile``: what a network costs, and the table for a latency budget."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coa_compress.cli.progress import Screen
from coa_compress.cli.session import session, staged


def profile(  # noqa: PLR0913 - one parameter an option
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a student, builtin:teacher, or package.module:factory."
        ),
    ],
    *,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width of the input.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the input; else as the model has.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes.")] = 20,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the latency table for budgets: a minute or more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show what a model costs: parameters, MACs, memory, file size, latency, each layer."""
    with session(interrupted="nothing was changed") as screen:
        import torch

        from coa_compress.profiling.profile import profile_network
        from coa_compress.provenance import usable_device
        from coa_compress.sources import open_source, parse_size

        opened = open_source(source, size=None if size is None else parse_size(size))
        example = opened.example
        if channels is not None and channels != example.shape[1]:
            shape = (1, channels, *example.shape[2:])
            example = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
        place = usable_device(device)
        model, example = opened.model.to(place), example.to(place)
        measured = staged(screen, "profile", lambda: profile_network(model, example, rounds=rounds))
        if table is not None:
            staged(screen, "table", lambda: _write_table(model, example, table, screen))
    if as_json:
        typer.echo(json.dumps({"model": source, **asdict(measured)}, allow_nan=False))
    else:
        typer.echo(profile_table(measured))
        if table is not None:
            typer.echo(f"latency table: {table}")


def profile_table(profile: Any) -> str:
    """Return a profile as text, what costs most marked by its share.

    Args:
        profile: What ``profile_network`` returned.
    """
    latency = profile.latency
    size = "x".join(str(n) for n in profile.example_size)
    facts = [
        ("input", size),
        ("parameters", f"{profile.params:,}"),
        ("MACs", f"{profile.macs:,}"),
        ("peak memory", f"{profile.peak_memory_mb:.2f} MB"),
        ("file size", f"{profile.file_bytes / 1e6:.2f} MB"),
        (
            "latency",
            f"{latency.median_ms:.2f} ms (p10 {latency.p10_ms:.2f}, p90 {latency.p90_ms:.2f}) on "
            f"{latency.device}, {latency.threads} threads, {latency.rounds} passes",
        ),
    ]
    rows = [["layer", "kind", "parameters", "MACs", "share"]]
    for layer in profile.layers:
        share = layer.macs / max(1, profile.macs)
        name = layer.path or "(the network)"
        rows.append([name, layer.kind, f"{layer.params:,}", f"{layer.macs:,}", f"{share:.1%}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{name:<12} {text}" for name, text in facts]
    lines.append("")
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*left, *right]))
    return "\n".join(lines)


def _write_table(model: Any, example: Any, file: Path, screen: Screen) -> None:
    from coa_compress.profiling.latency_table import save_table
    from coa_compress.stages.limits import Place, build_table
    from coa_compress.structure.analysis import analyze

    structure = analyze(model.cpu(), example.cpu())
    place = Place(structure, model.to(example.device), example)
    save_table(build_table(place, screen.on_progress), file)
