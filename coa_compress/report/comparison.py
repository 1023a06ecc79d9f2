"""Several runs side by side, as a table for a terminal, a program or a web page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from coa_compress.report import figures, summary
from coa_compress.report.content import Report


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the comparison.

    Args:
        label: What is compared, with its unit.
        split: On what; empty for costs and facts.
        cells: One for each run.
    """

    label: str
    split: str
    cells: tuple[summary.Cell, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side.

    Args:
        runs: Their names, all different.
        headlines: Each run in one sentence.
        lines: Facts, costs and measures of the final student of each run.
    """

    runs: tuple[str, ...]
    headlines: tuple[str, ...]
    lines: tuple[Line, ...]


def compare_runs(reports: Mapping[str, Report]) -> Comparison:
    """Return runs side by side; figures are those of each run's final student.

    Args:
        reports: Report by name of the run, in the order of the columns.

    >>> small = Report(name="a", title="A", measurements={
    ...     "teacher": {"macs": 100}, "student": {"macs": 25, "psnr_db": {"test": 29.0}}})
    >>> found = compare_runs({"a": small, "b": small})
    >>> [(line.label, line.cells[0].value) for line in found.lines][:2]
    [('Figures of', 'student'), ('MACs', '25')]
    """
    found: dict[tuple[str, str], dict[str, summary.Cell]] = {}
    for name, report in reports.items():
        for row in [*_facts(report), *summary.cost_rows(report), *summary.measure_rows(report)]:
            cell = row.cells[0] if len(row.cells) == 1 else _final_cell(report, row)
            if cell is not None:
                found.setdefault((row.label, row.split), {})[name] = cell
    unknown = summary.Cell(figures.UNKNOWN)
    lines = tuple(
        Line(label, split, tuple(cells.get(name, unknown) for name in reports))
        for (label, split), cells in found.items()
    )
    return Comparison(tuple(reports), tuple(map(summary.headline, reports.values())), lines)


def comparison_text(found: Comparison) -> str:
    """Return a comparison as a table of plain text."""
    rows = [["", *found.runs]]
    for line in found.lines:
        name = f"{line.label}, {line.split}" if line.split else line.label
        rows.append([name, *(_plain(cell) for cell in line.cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def comparison_document(found: Comparison, reports: Mapping[str, Report]) -> dict[str, Any]:
    """Return a comparison as JSON values: the numbers, and the lines as they are shown."""
    runs = [
        {
            "run": name,
            "headline": headline,
            "final": summary.final_role(report),
            "measurements": report.measurements,
        }
        for (name, report), headline in zip(reports.items(), found.headlines, strict=True)
    ]
    return {"runs": runs, "lines": [asdict(line) for line in found.lines]}


def comparison_html(found: Comparison) -> str:
    """Return a comparison as a web page that loads nothing from anywhere."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pairs = list(zip(found.runs, found.headlines, strict=True))
    return environment.get_template("comparison.html.jinja").render(found=found, pairs=pairs)


def _facts(report: Report) -> Sequence[summary.Row]:
    gate = "-" if report.gate is None else "accepted" if report.gate.get("accepted") else "refused"
    seconds = [value for value in report.stage_seconds.values() if figures.is_number(value)]
    facts = {
        "Figures of": summary.final_role(report),
        "Adaptation": "" if report.gate is None else gate,
        "Seed": report.provenance.get("seed"),
        "Device": report.provenance.get("device_name"),
        "Time of all stages": figures.duration(sum(seconds)) if seconds else None,
    }
    return [
        summary.Row(label, "", (summary.Cell(str(value)),))
        for label, value in facts.items()
        if value not in (None, "")
    ]


def _final_cell(report: Report, row: summary.Row) -> summary.Cell | None:
    roles = summary.roles(report)
    final = summary.final_role(report)
    return row.cells[roles.index(final)] if final in roles else None


def _plain(cell: summary.Cell) -> str:
    text = f"{cell.value} ({cell.change})" if cell.change else cell.value
    return text.replace(figures.NARROW_SPACE, " ")


def _source(name: str) -> str:
    return files("coa_compress.report").joinpath(name).read_text(encoding="utf-8")
