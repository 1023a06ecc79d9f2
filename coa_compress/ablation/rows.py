"""What one run of an ablation gave, as JSON values."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coa_compress.report.content import Report
from coa_compress.runs import RunFolder

Row = Mapping[str, Any]
"""``variant``, ``seed``, ``final``, ``measurements``, ``gate`` and ``stages``; see ``row_of``."""

Measure = tuple[str, str]
"""A measure of the task and the split it was measured on."""

_ROLES = ("adapted", "student", "teacher")


def row_of(variant: str, report: Report, run: Path) -> dict[str, Any]:
    """Return the row of a finished run.

    Args:
        variant: Name of the variant.
        report: The report of the run.
        run: The run folder.

    Returns:
        ``variant`` and ``seed``; ``measurements`` by role, as in the report; ``final``, the role of
        the network that the run is about; ``gate``, the verdict or None; ``stages``, for each
        stage its ``digest`` and how many ``seconds`` it took where it was done.
    """
    folder = RunFolder(run.absolute())
    stages = {}
    for index, (name, seconds) in enumerate(report.stage_seconds.items()):
        digest = folder.digest(folder.stage_folder(index, name))
        stages[name] = {"digest": digest, "seconds": seconds}
    row = {
        "variant": variant,
        "seed": report.provenance["seed"],
        "final": final_role(report),
        "measurements": report.measurements,
        "gate": report.gate,
        "stages": stages,
    }
    plain: dict[str, Any] = _plain(row)
    return plain


def final_role(report: Report) -> str:
    """Return whose figures count: the adapted network unless it was refused, else the student's.

    >>> final_role(Report(name="x", title="x", measurements={"teacher": {}, "student": {}}))
    'student'
    """
    refused = report.gate is not None and not report.gate["accepted"]
    roles = [role for role in _ROLES if role in report.measurements]
    if refused and len(roles) > 1 and roles[0] == "adapted":
        return roles[1]
    return roles[0] if roles else "teacher"


def figure(row: Row, role: str, measure: Measure) -> float | None:
    """Return one figure of a row, or None if it has none.

    Args:
        row: What a run gave.
        role: ``teacher``, ``student``, ``adapted``, or ``final`` for the one that counts.
        measure: Name of the measure, and of the split; an empty split is for a cost.

    >>> row = {"final": "student", "measurements": {"student": {"macs": 5, "l1": {"test": 0.5}}}}
    >>> figure(row, "final", ("l1", "test")), figure(row, "student", ("macs", ""))
    (0.5, 5.0)
    """
    role = str(row["final"]) if role == "final" else role
    name, split = measure
    value = row["measurements"].get(role, {}).get(name)
    if isinstance(value, Mapping):
        value = value.get(split)
    return None if value is None else float(value)


def measures_of(rows: Sequence[Row], wanted: Sequence[str]) -> list[Measure]:
    """Return every measure of the task and split that some row has.

    Args:
        rows: What runs gave.
        wanted: Names of measures, in order; empty for all, as they come.

    >>> measures_of([{"measurements": {"student": {"l1": {"a": 1, "b": 2}, "macs": 3}}}], [])
    [('l1', 'a'), ('l1', 'b')]
    """
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for values in row["measurements"].values():
            for name, value in values.items():
                if isinstance(value, Mapping):
                    found.setdefault(name, {}).update(dict.fromkeys(value))
    names = [name for name in wanted if name in found] if wanted else list(found)
    return [(name, split) for name in names for split in found[name]]


def seconds_of(row: Row) -> float:
    """Return how long the stages of a run took, each where it was done."""
    return math.fsum(stage["seconds"] for stage in row["stages"].values())


def seconds_in_all(rows: Sequence[Row]) -> float:
    """Return how long all stages of some runs took, each counted once however many runs used it.

    >>> stages = {"score": {"digest": "a", "seconds": 2.0}}
    >>> seconds_in_all([{"stages": stages}, {"stages": stages}])
    2.0
    """
    each = {s["digest"]: s["seconds"] for row in rows for s in row["stages"].values()}
    return math.fsum(each.values())


def _plain(value: Any) -> Any:
    """Return JSON values; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
