"""A report as Markdown, for terminals, pull requests and diffs."""

import json
import re
from collections.abc import Iterable, Sequence

from coa_compress.report import figures, frontier, layers, summary
from coa_compress.report.blame import blame
from coa_compress.report.content import Report


def to_markdown(report: Report) -> str:
    """Return a report as Markdown with the tables of the web page, without pictures and curves.

    >>> to_markdown(Report(name="x", title="A run", measurements={})).splitlines()[:3]
    ['# A run', '', 'Nothing was measured.']
    """
    sections = [
        ["# " + _text(report.title), summary.headline(report)],
        _comparison(report),
        _others(report),
        _gate(report),
        _widths(report),
        _layers(report),
        _losses(report),
        _times(report),
        _recipe(report),
        _provenance(report),
        _notes(report),
    ]
    blocks = [block for section in sections for block in section if block]
    return "\n\n".join(blocks) + "\n"


def _comparison(report: Report) -> list[str]:
    rows = summary.cost_rows(report) + summary.measure_rows(report)
    if not rows:
        return []
    lines = []
    for row in rows:
        name = f"{row.label}, {row.split}" if row.split else row.label
        cells = [_cell(cell) for cell in row.cells]
        lines.append([name, *cells])
    explained = [f"- {row.label}: {row.explanation}" for row in rows if row.explanation]
    return [
        "## Teacher and student",
        _table(["", *summary.column_titles(report)], lines),
        "In brackets: costs as a fraction of the teacher's, measures as the difference from it, "
        "and ranges.",
        "\n".join(explained),
    ]


def _others(report: Report) -> list[str]:
    measure, splits = frontier.measure(report)
    lines = [
        [
            reference.name,
            figures.cost("params", reference.params),
            figures.cost("macs", reference.macs),
            *(figures.score(measure, reference.measures[measure].get(split)) for split in splits),
        ]
        for reference in report.references
        if measure in reference.measures
    ]
    if not lines:
        return []
    title = f"{figures.label(measure)} ({figures.unit(measure)})"
    head = ["network", "parameters", "MACs", *(f"{title}, {split}" for split in splits)]
    sizes = dict.fromkeys(reference.example_size for reference in report.references)
    inputs = " and ".join(" x ".join(map(str, size)) for size in sizes)
    return [
        "## Earlier benchmarks on the same test images",
        _table(head, lines),
        f"MACs for an input of {inputs}.",
    ]


def _cell(cell: summary.Cell) -> str:
    details = ", ".join(part for part in (cell.change, cell.detail) if part)
    return f"{cell.value} ({details})" if details else cell.value


def _gate(report: Report) -> list[str]:
    if report.gate is None:
        return []
    words = {True: "yes", False: "no", None: figures.UNKNOWN}
    lines = [
        [rule.label, rule.before, rule.after, rule.change, rule.demand, words[rule.held]]
        for rule in summary.gate_rules(report)
    ]
    verdict = "accepted" if report.gate.get("accepted") else "refused"
    return [
        f"## Adaptation: {verdict}",
        _table(["", "before", "after", "change", "rule", "held"], lines),
        summary.gate_margin(report),
        _bullets(report.gate.get("reasons", ())),
    ]


def _widths(report: Report) -> list[str]:
    lines = [
        [
            f"`{group['name']}`",
            str(group["teacher_width"]),
            str(group["student_width"]),
            figures.percent(kept)
            if figures.is_number(kept := group.get("score_kept_fraction"))
            else figures.UNKNOWN,
        ]
        for group in report.allocation.get("groups", ())
    ]
    if not lines:
        return []
    head = ["channel group", "teacher", "student", "importance kept"]
    return ["## Widths", _table(head, lines)]


def _layers(report: Report) -> list[str]:
    lines = [
        [
            f"`{row.label}`" if row.kind else row.label,
            row.kind,
            figures.significant(row.teacher_ms),
            figures.significant(row.student_ms),
            row.time_kept,
            row.macs_kept,
        ]
        for row in layers.shown_rows(layers.layer_rows(report))
    ]
    if not lines:
        return []
    head = ["layer", "kind", "teacher, ms", "student, ms", "time kept", "MACs kept"]
    found = blame(report)
    reasons = [] if found is None else [found.summary, _bullets(found.layers), found.advice]
    return ["## Time by layer", *reasons, _table(head, lines)]


def _losses(report: Report) -> list[str]:
    lines = [
        [stage, name, figures.significant(finite[0]), figures.significant(finite[-1])]
        for stage, history in report.histories.items()
        for name, values in history.losses.items()
        if (finite := [value for value in values if figures.is_number(value)])
    ]
    return ["## Losses", _table(["stage", "loss", "first", "last"], lines)] if lines else []


def _times(report: Report) -> list[str]:
    lines = [
        [stage, figures.duration(seconds)]
        for stage, seconds in report.stage_seconds.items()
        if figures.is_number(seconds)
    ]
    return ["## Wall-clock time", _table(["stage", "time"], lines)] if lines else []


def _recipe(report: Report) -> list[str]:
    text = report.recipe_text or json.dumps(report.recipe, indent=2, default=str)
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return ["## Recipe as resolved", f"{fence}yaml\n{text.rstrip()}\n{fence}"]


def _provenance(report: Report) -> list[str]:
    lines = [[name, text] for name, text in summary.pairs(report.provenance)]
    return ["## Provenance", _table(["", ""], lines)] if lines else []


def _notes(report: Report) -> list[str]:
    return ["## Notes", _bullets(report.notes)] if report.notes else []


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_text(sentence)}" for sentence in sentences)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: str) -> str:
    """Return text on one line in which nothing is markup but code spans."""
    return " ".join(value.replace("\n", " ").split(" ")).replace("|", "\\|").replace("<", "&lt;")
