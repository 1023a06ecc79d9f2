"""The sentences and tables of a report, the same for Markdown and HTML."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coa_compress.report import figures
from coa_compress.report.content import Report

_ROLES = ("teacher", "student", "adapted")
_COSTS = (
    "macs",
    "params",
    "latency_ms",
    "peak_memory_mb",
    "file_bytes",
    "macs_fvcore",
    "macs_thop",
)
AGAINST_TEACHER = "_to_teacher_db"
"""Ending of measures that hold an output against the teacher's, whose own figure says nothing."""

_SPREAD = frozenset({"latency_p10_ms", "latency_p90_ms"})


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the table.

    Args:
        value: The figure.
        change: How it compares with the teacher; empty in the teacher's column.
        detail: What else there is to say, such as the spread.
    """

    value: str
    change: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison.

    Args:
        label: What is measured, with its unit.
        split: On what, empty for costs.
        cells: One for each column.
        explanation: What the measure means; on the first row of a measure only.
    """

    label: str
    split: str
    cells: tuple[Cell, ...]
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the adaptation gate.

    Args:
        label: What is looked at.
        before: Its value before adaptation.
        after: Its value after.
        change: The difference, as the rule states it.
        demand: What had to hold.
        held: Whether it did; None where it cannot be told.
    """

    label: str
    before: str
    after: str
    change: str
    demand: str
    held: bool | None


def roles(report: Report) -> list[str]:
    """Return the columns of the comparison: the known roles in order, then any others."""
    known = [role for role in _ROLES if role in report.measurements]
    return known + [role for role in report.measurements if role not in _ROLES]


def column_titles(report: Report) -> list[str]:
    """Return the headings of the columns; an adapted student that was refused is named so."""
    return [
        "Adapted (refused)" if role == "adapted" and _refused(report) else role.capitalize()
        for role in roles(report)
    ]


def final_role(report: Report) -> str:
    """Return whose figures count: the adapted student when the gate took it, else the student."""
    accepted = report.gate is not None and bool(report.gate.get("accepted"))
    return "adapted" if accepted and "adapted" in report.measurements else "student"


def headline(report: Report) -> str:
    """Return the whole run in one sentence.

    >>> report = Report(name="x", title="x", measurements={
    ...     "teacher": {"macs": 100, "params": 10, "psnr_db": {"test": 30.0}},
    ...     "student": {"macs": 25, "params": 3, "psnr_db": {"test": 29.5}}})
    >>> " ".join(headline(report).split())
    'The student keeps 25.0 % of the MACs and 30.0 % of the parameters and loses 0.50 dB.'
    """
    kept = [
        f"{figures.percent(fraction)} of the {word}"
        for key, word in (("macs", "MACs"), ("params", "parameters"))
        if (fraction := kept_fraction(report, key)) is not None
    ]
    clauses = [f"keeps {' and '.join(kept)}"] if kept else []
    clauses += [text for text in (_change_of_skill(report), _adapted(report)) if text]
    if not clauses:
        return "Nothing was measured."
    start, last = ", ".join(clauses[:-1]), clauses[-1]
    comma = "," if len(clauses) > 2 else ""
    sentence = f"The student {start}{comma} and {last}" if start else f"The student {last}"
    refused = "; its adaptation to real inputs was refused" if _refused(report) else ""
    return f"{sentence}{refused}."


def kept_fraction(report: Report, measure: str) -> float | None:
    """Return what fraction of a cost of the teacher the final student has, if both are known."""
    teacher = report.measurements.get("teacher", {}).get(measure)
    student = report.measurements.get(final_role(report), {}).get(measure)
    if not (figures.is_number(teacher) and figures.is_number(student)) or not teacher:
        return None
    return float(student) / float(teacher)


def cost_rows(report: Report) -> list[Row]:
    """Return one row for each cost that was measured."""
    columns = roles(report)
    rows = []
    for measure in _cost_names(report):
        values = [report.measurements[role].get(measure) for role in columns]
        reference = report.measurements.get("teacher", {}).get(measure)
        cells = tuple(
            _cost_cell(report, role, measure, value, reference)
            for role, value in zip(columns, values, strict=True)
        )
        explanation = figures.COST_EXPLANATIONS.get(measure, "")
        rows.append(Row(figures.label(measure), "", cells, _explain(report, measure, explanation)))
    return rows


def measure_rows(report: Report) -> list[Row]:
    """Return one row for each measure of the task and each split."""
    columns = roles(report)
    rows = []
    for measure, splits in _measures(report).items():
        title = figures.label(measure)
        unit = figures.unit(measure)
        known = figures.MEASURE_EXPLANATIONS.get(measure, "")
        explanation = _explain(report, measure, known)
        for split in splits:
            reference = _at(report, "teacher", measure, split)
            cells = tuple(
                _score_cell(measure, _at(report, role, measure, split), reference, role)
                for role in columns
            )
            rows.append(Row(f"{title} ({unit})" if unit else title, split, cells, explanation))
            explanation = ""
    return rows


def gate_rules(report: Report) -> list[Rule]:
    """Return the rules of the gate with what was measured; none without adaptation."""
    gate = report.gate or {}
    labels = gate.get("labels", {})
    return [_rule(found, labels) for found in gate.get("findings", ())]


def gate_margin(report: Report) -> str:
    """Return how surely each rule of the gate must hold, as a sentence; empty where unknown.

    >>> gate = {"rules": {"standard_errors": 1.0}}
    >>> gate_margin(Report(name="x", title="x", measurements={}, gate=gate))
    'Each rule must hold by 1 standard error (±) of the differences input by input.'
    """
    errors = (report.gate or {}).get("rules", {}).get("standard_errors")
    if not figures.is_number(errors):
        return ""
    if not errors:
        return "±: standard error of the differences input by input; the rules look at the means."
    many = "" if errors == 1 else "s"
    return (
        f"Each rule must hold by {errors:g} standard error{many} (±) of the differences input by "
        "input."
    )


def _refused(report: Report) -> bool:
    return report.gate is not None and not report.gate.get("accepted")


def _adapted(report: Report) -> str:
    return "was adapted to real inputs" if report.gate and report.gate.get("accepted") else ""


def _change_of_skill(report: Report) -> str:
    """Return the mean change of the first measure in dB over the splits both networks have."""
    for measure in _measures(report):
        if figures.unit(measure) != "dB":
            continue
        if measure.endswith(AGAINST_TEACHER):
            return _likeness(report, measure)
        changes = [
            student - teacher
            for split in _measures(report)[measure]
            if figures.is_number(teacher := _at(report, "teacher", measure, split))
            and figures.is_number(student := _at(report, final_role(report), measure, split))
        ]
        if changes:
            mean = sum(changes) / len(changes)
            where = f" on average over {len(changes)} test sets" if len(changes) > 1 else ""
            verb = "gains" if mean > 0 else "loses"
            return f"{verb} {abs(mean):.2f}{figures.NARROW_SPACE}dB{where}"
    return ""


def _likeness(report: Report, measure: str) -> str:
    """Return how close the student's output is to the teacher's, whose own figure says nothing."""
    values = [
        _at(report, final_role(report), measure, split) for split in _measures(report)[measure]
    ]
    known = [value for value in values if figures.is_number(value)]
    if not known:
        return ""
    mean = sum(known) / len(known)
    return f"reproduces the output of the teacher at {mean:.1f}{figures.NARROW_SPACE}dB"


def _cost_names(report: Report) -> list[str]:
    found = {
        measure: None
        for role in roles(report)
        for measure, value in report.measurements[role].items()
        if not isinstance(value, Mapping) and measure not in _SPREAD
    }
    known = [measure for measure in _COSTS if measure in found]
    return known + [measure for measure in found if measure not in _COSTS]


def _measures(report: Report) -> dict[str, list[str]]:
    """Return the splits of each measure of the task, in order of first mention."""
    found: dict[str, dict[str, None]] = {}
    for role in roles(report):
        for measure, value in report.measurements[role].items():
            if isinstance(value, Mapping):
                found.setdefault(measure, {}).update(dict.fromkeys(value))
    return {measure: list(splits) for measure, splits in found.items()}


def _at(report: Report, role: str, measure: str, split: str) -> Any:
    values = report.measurements.get(role, {}).get(measure)
    return values.get(split) if isinstance(values, Mapping) else None


def _explain(report: Report, measure: str, known: str) -> str:
    return report.explanations.get(measure, known)


def _cost_cell(report: Report, role: str, measure: str, value: Any, reference: Any) -> Cell:
    change = ""
    if role != "teacher" and figures.is_number(value) and figures.is_number(reference):
        change = figures.percent(value / reference) if reference else ""
    low, high = (report.measurements[role].get(key) for key in ("latency_p10_ms", "latency_p90_ms"))
    detail = ""
    if measure == "latency_ms" and figures.is_number(low) and figures.is_number(high):
        detail = f"{figures.significant(low)} to {figures.significant(high)}"
    return Cell(figures.cost(measure, value), change, detail)


def _score_cell(measure: str, value: Any, reference: Any, role: str) -> Cell:
    change = "" if role == "teacher" else figures.score_change(measure, value, reference)
    return Cell(figures.score(measure, value), change)


def _rule(found: Mapping[str, Any], labels: Mapping[str, str]) -> Rule:
    measure, relative = found["measure"], found["kind"] != "skill"
    change, error, least = (found.get(k) for k in ("change", "standard_error", "least_gain"))
    text = _amount(change, relative=relative)
    if text and figures.is_number(error):
        text += f" ± {_amount(error, relative=relative).lstrip('+±')}"
    return Rule(
        label=labels.get(measure, figures.label(measure)),
        before=figures.score("", found.get("before")),
        after=figures.score("", found.get("after")),
        change=text,
        demand=_demand(least, relative=relative, falls=bool(found.get("lower_is_better"))),
        held=bool(found["held"]) if figures.is_number(change) else None,
    )


def _amount(value: Any, *, relative: bool) -> str:
    if not figures.is_number(value):
        return ""
    if relative:
        return f"{figures.signed(100 * value, 1)}{figures.NARROW_SPACE}%"
    return figures.signed(value)


def _demand(least: Any, *, relative: bool, falls: bool) -> str:
    if not figures.is_number(least):
        return ""
    limit = figures.percent(abs(least)) if relative else f"{abs(least):g}"
    better, worse = ("falls", "rises") if falls else ("rises", "falls")
    if not least:
        return f"never {worse}"
    return f"{better} by at least {limit}" if least > 0 else f"{worse} by at most {limit}"


def pairs(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return nested values as flat names and texts, for lists of facts.

    >>> list(pairs({"seed": 0, "versions": {"torch": "2.13"}, "size": [64, 64]}))
    [('seed', '0'), ('torch', '2.13'), ('size', '64, 64')]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from pairs(value)
        elif isinstance(value, list | tuple):
            yield key.replace("_", " "), ", ".join(map(str, value))
        else:
            yield key.replace("_", " "), figures.UNKNOWN if value is None else str(value)
