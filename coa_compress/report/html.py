"""A report as one self-contained web page."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from torch import Tensor

from coa_compress.artifacts import Picture
from coa_compress.report import curves, figures, frontier, layers, summary
from coa_compress.report.blame import blame
from coa_compress.report.closer import closer_look
from coa_compress.report.content import Report
from coa_compress.report.images import data_uri

_TILES = {
    "macs": "of the MACs",
    "params": "of the parameters",
    "latency_ms": "of the latency",
    "file_bytes": "of the file size",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure at the top of the page.

    Args:
        kept: Fraction of the teacher's cost, as per cent.
        part: The same in [0, 100], for the bar.
        what: What it is a fraction of.
        teacher: The teacher's cost.
        student: The cost of the final student.
    """

    kept: str
    part: float
    what: str
    teacher: str
    student: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a bar chart.

    Args:
        label: What it stands for.
        text: Its value.
        part: Length in [0, 100].
        track: Length of what it was before, in [0, 100]; 0 for none.
        detail: What else there is to say.
    """

    label: str
    text: str
    part: float
    track: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Shot:
    """One image of a row.

    Args:
        column: Name of the column.
        caption: Short text under it.
        uri: The image.
        width: In pixels.
        height: In pixels.
    """

    column: str
    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row of pictures.

    Args:
        title: What is shown.
        shots: Whole images.
        crops: The same part of each, enlarged.
        errors: Where networks are off the reference.
        reference: What the networks are held against.
        left: Number of the column that the slider shows on its left at first.
        right: The same for its right.
    """

    title: str
    shots: Sequence[Shot]
    crops: Sequence[Shot]
    errors: Sequence[Shot]
    reference: str
    left: int
    right: int


def to_html(report: Report) -> str:
    """Return a report as a web page that loads nothing from anywhere.

    Raises:
        DataError: If a picture is not uint8 of shape (height, width, 3).

    >>> page = to_html(Report(name="x", title="<b>", measurements={}))
    >>> page.startswith("<!doctype html>"), "&lt;b&gt;" in page
    (True, True)
    """
    return _environment().get_template("page.html.jinja").render(_values(report))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code_spans": _code_spans, "significant": figures.significant}
    return environment


def _code_spans(sentence: str) -> Markup:
    """Return a sentence as HTML in which what stands between backticks is code."""
    parts = enumerate(sentence.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in parts
    )


def _source(name: str) -> str:
    return files("coa_compress.report").joinpath(name).read_text(encoding="utf-8")


def _values(report: Report) -> dict[str, Any]:
    measures = itertools.groupby(summary.measure_rows(report), key=lambda row: row.label)
    titles = summary.column_titles(report)
    return {
        "report": report,
        "links": _links(report),
        "final": summary.final_role(report).capitalize(),
        "headline": summary.headline(report),
        "tiles": _tiles(report),
        "columns": titles,
        "costs": summary.cost_rows(report),
        "measures": [(label, list(rows)) for label, rows in measures],
        "plots": frontier.plots(report),
        "plot": frontier,
        "layer_bars": _layer_bars(report),
        "layer_rows": layers.shown_rows(layers.layer_rows(report)),
        "blame": blame(report),
        "rows": [_row(picture, list(report.measurements)) for picture in report.pictures],
        "rules": summary.gate_rules(report),
        "gate_margin": summary.gate_margin(report),
        "widths": _width_bars(report),
        "allocation_facts": _allocation_facts(report),
        "stages": {stage: curves.charts(history) for stage, history in report.histories.items()},
        "chart_size": (curves.WIDTH, curves.HEIGHT),
        "times": _time_bars(report),
        "total_time": figures.duration(sum(_seconds(report).values())),
        "recipe": report.recipe_text or json.dumps(report.recipe, indent=2, default=str),
        "facts": list(summary.pairs(report.provenance)),
    }


def _links(report: Report) -> list[tuple[str, str]]:
    present = {
        "comparison": report.measurements,
        "frontier": frontier.plots(report),
        "pictures": report.pictures,
        "adaptation": report.gate is not None,
        "widths": report.allocation.get("groups"),
        "layers": layers.layer_rows(report),
        "training": report.histories,
        "time": _seconds(report),
        "recipe": True,
        "provenance": report.provenance,
        "notes": report.notes,
    }
    return [(name, name.capitalize()) for name, there in present.items() if there]


def _tiles(report: Report) -> list[Tile]:
    teacher = report.measurements.get("teacher", {})
    student = report.measurements.get(summary.final_role(report), {})
    found = []
    for measure, what in _TILES.items():
        kept = summary.kept_fraction(report, measure)
        if kept is not None:
            before, after = (figures.cost(measure, part[measure]) for part in (teacher, student))
            part = round(min(100.0, 100 * kept), 2)
            found.append(Tile(figures.percent(kept), part, what, before, after))
    return found


def _width_bars(report: Report) -> list[Bar]:
    groups: Sequence[Any] = report.allocation.get("groups", ())
    widest = max((group["teacher_width"] for group in groups), default=1)
    bars = []
    for group in groups:
        before, after = group["teacher_width"], group["student_width"]
        importance = group.get("score_kept_fraction")
        detail = figures.percent(importance) if figures.is_number(importance) else ""
        bars.append(
            Bar(
                label=group["name"],
                text=f"{before} → {after}" if after != before else f"{before}",
                part=round(100 * after / widest, 2),
                track=round(100 * before / widest, 2),
                detail=detail,
            )
        )
    return bars


def _layer_bars(report: Report) -> list[Bar]:
    rows = layers.shown_rows(layers.layer_rows(report))
    longest = max((max(row.teacher_ms, row.student_ms) for row in rows), default=0.0) or 1.0
    return [
        Bar(
            label=row.label,
            text=f"{figures.significant(row.teacher_ms)} → {figures.significant(row.student_ms)}",
            part=round(100 * row.student_ms / longest, 2),
            track=round(100 * row.teacher_ms / longest, 2),
            detail=row.time_kept,
        )
        for row in rows
    ]


_KEPT = (
    ("MACs kept", "macs_kept"),
    ("Parameters kept", "params_kept"),
    ("Latency kept", "latency_kept"),
    ("Peak memory kept", "memory_kept"),
)


def _allocation_facts(report: Report) -> list[tuple[str, str]]:
    allocation = report.allocation
    facts = [
        (name, figures.percent(allocation[key]))
        for name, key in _KEPT
        if figures.is_number(allocation.get(key))
    ]
    for name, value in (allocation.get("budget") or {}).items():
        if name.startswith("keep_") and figures.is_number(value):
            facts.append(
                (f"{figures.label(name.removeprefix('keep_'))} asked", figures.percent(value))
            )
        elif value is not None:
            facts.append((name.replace("_", " "), str(value)))
    return facts


def _seconds(report: Report) -> dict[str, float]:
    return {
        stage: float(value)
        for stage, value in report.stage_seconds.items()
        if figures.is_number(value)
    }


def _time_bars(report: Report) -> list[Bar]:
    seconds = _seconds(report)
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        Bar(stage, figures.duration(value), round(100 * value / longest, 2))
        for stage, value in seconds.items()
    ]


def _row(picture: Picture, roles: Sequence[str]) -> Row:
    look, columns = closer_look(picture, roles), list(picture.images)
    networks = [number for number, column in enumerate(columns) if column in roles]
    errors = {} if look is None else look.mean_errors
    return Row(
        title=picture.title,
        shots=_shots(picture.images, picture.captions),
        crops=[] if look is None else _shots(look.crops, {}),
        errors=[]
        if look is None
        else _shots(look.errors, {name: f"mean {255 * mean:.1f}" for name, mean in errors.items()}),
        reference="" if look is None else look.reference,
        left=0,
        right=networks[-1] if networks else len(columns) - 1,
    )


def _shots(images: Mapping[str, Tensor], captions: Mapping[str, str]) -> list[Shot]:
    return [
        Shot(column, captions.get(column, ""), data_uri(image), *_size(image.shape))
        for column, image in images.items()
    ]


def _size(shape: Sequence[int]) -> tuple[int, int]:
    return shape[1], shape[0]
