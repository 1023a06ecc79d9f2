"""``coa-compress sensitivity``: which groups of a network can be cut at what loss."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coa_compress.cli.arguments import Device, Model, Weights
from coa_compress.cli.session import session, staged


def sensitivity(  # noqa: PLR0913 - one parameter an option
    source: Model,
    *,
    weights: Weights = None,
    scorer: Annotated[str, typer.Option(help="Which channels go first.")] = "sensitivity",
    widths: Annotated[int, typer.Option(help="Widths of each group that are measured.")] = 5,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Measure after a closed-form refit.")
    ] = True,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size at which MACs are counted.")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curves: .svg or .png.")
    ] = None,
) -> None:
    """Measure how the output changes when each group alone is cut."""
    with session(interrupted="nothing was changed") as screen:
        from coa_compress.provenance import usable_device
        from coa_compress.report.sensitivity import check_picture_path, draw_curves
        from coa_compress.scoring.catalog import SCORERS
        from coa_compress.scoring.curves import CurvePlan
        from coa_compress.sources import open_source, parse_size

        place = usable_device(device)
        SCORERS.get(scorer)
        plan = CurvePlan(n_widths=widths, refit=refit)
        if draw is not None:
            check_picture_path(draw)
        opened = open_source(
            source, size=None if size is None else parse_size(size), weights=weights
        )
        rows, curves = _measured(opened, place, scorer, plan, screen)
    if draw is not None:
        draw_curves(curves, draw, title=f"{source}: one group cut alone, {scorer} first")
    if as_json:
        document = {
            "model": source,
            "scorer": scorer,
            "refit": refit,
            "groups": [{**asdict(row), "curve": asdict(curves[row.group])} for row in rows],
        }
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        typer.echo(sensitivity_table(rows))
        if draw is not None:
            typer.echo(f"curves: {draw}")


def sensitivity_table(rows: Any) -> str:
    """Return the rows as a table.

    Args:
        rows: What ``sensitivity_rows`` returned.

    >>> from coa_compress.scoring.table import GroupRow
    >>> print(sensitivity_table([GroupRow(group="stem", channels=64, macs_share=0.25,
    ...     score_mass=0.125, losses=(0.001, 0.01, 0.5))]))
    group  channels   MACs  score  loss at 75%  at 50%  at 25%
    stem         64  25.0%  12.5%        0.001    0.01     0.5
    """
    from coa_compress.scoring.table import PARTS

    head = ["group", "channels", "MACs", "score"]
    head += [f"{'at' if i else 'loss at'} {part:.0%}" for i, part in enumerate(PARTS)]
    lines = [head]
    for row in rows:
        shares = [f"{row.macs_share:.1%}", f"{row.score_mass:.1%}"]
        losses = [f"{loss:.2g}" for loss in row.losses]
        lines.append([row.group, str(row.channels), *shares, *losses])
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = (
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in lines
    )
    return "\n".join(texts)


def _measured(opened: Any, place: str, scorer: str, plan: Any, screen: Any) -> tuple[Any, Any]:
    from coa_compress.copying import placed
    from coa_compress.scoring.catalog import SCORERS
    from coa_compress.scoring.curves import measure_curves
    from coa_compress.scoring.table import sensitivity_rows
    from coa_compress.stages.score import squared_error
    from coa_compress.structure.analysis import analyze

    structure = staged(screen, "analyze", lambda: analyze(opened.model, opened.example))
    model = placed(opened.model, place)
    batches = [batch.to(place) for batch in opened.task.calibration_batches()]
    groups = structure.groups
    scores = staged(
        screen, "score", lambda: SCORERS.get(scorer)(model, groups, batches, squared_error)
    )
    curves = staged(
        screen,
        "measure",
        lambda: measure_curves(
            model, structure, scores, batches, plan=plan, progress=screen.on_progress
        ),
    )
    return sensitivity_rows(groups, scores, curves, structure.costs.macs), curves
