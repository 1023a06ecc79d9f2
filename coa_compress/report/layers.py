"""Where the time of teacher and student goes, layer by layer: the data, and the rows shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coa_compress.profiling.layer_times import LayerTime, LayerTimes
from coa_compress.report import figures
from coa_compress.report.content import Report

ELSEWHERE = "elsewhere"
"""Name of the row of what is in no layer."""

_MOST_ROWS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer, or several together, in teacher and student.

    Args:
        label: Path of the layer, or what it stands for.
        kind: Name of its class; empty where there is none.
        teacher_ms: Time in one pass of the teacher.
        student_ms: Time in one pass of the student.
        teacher_least_ms: Least time in a pass of the teacher, undisturbed by the machine.
        student_least_ms: The same of the student.
        teacher_macs: Multiply-accumulates in the teacher.
        student_macs: The same in the student.
        is_cut: Whether its parameters or its multiply-accumulates became fewer.
    """

    label: str
    kind: str
    teacher_ms: float
    student_ms: float
    teacher_least_ms: float
    student_least_ms: float
    teacher_macs: int
    student_macs: int
    is_cut: bool

    @property
    def time_kept(self) -> str:
        """The student's time as per cent of the teacher's, or a dash."""
        return _fraction(self.student_ms, self.teacher_ms)

    @property
    def macs_kept(self) -> str:
        """The student's multiply-accumulates as per cent of the teacher's, or a dash."""
        return _fraction(self.student_macs, self.teacher_macs)


def describe_layers(
    times: Mapping[str, LayerTimes], macs: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Return the times of layers as the mapping that a report holds.

    Args:
        times: By role.
        macs: By role, then by path of a module; what is of no layer counts as elsewhere.

    >>> one = LayerTime(path="0", kind="Linear", params=6, ms=2.0, least_ms=1.5)
    >>> times = LayerTimes(
    ...     total_ms=3.0, elsewhere_ms=1.0, elsewhere_least_ms=0.5, layers=(one,), rounds=5)
    >>> found = describe_layers({"teacher": times}, {"teacher": {"0": 40, "": 2}})
    >>> found["layers"][0]["ms"], found["elsewhere"]["ms"], found["elsewhere"]["macs"]
    ({'teacher': 2.0}, {'teacher': 1.0}, {'teacher': 2})
    """
    layers: dict[str, dict[str, Any]] = {}
    for role, found in times.items():
        for layer in found.layers:
            entry = layers.setdefault(layer.path, _empty(layer))
            entry["ms"][role] = layer.ms
            entry["least_ms"][role] = layer.least_ms
            entry["macs"][role] = macs[role].get(layer.path, 0)
            entry["params"][role] = layer.params
    inside = {role: sum(layer["macs"].get(role, 0) for layer in layers.values()) for role in times}
    return {
        "rounds": min(found.rounds for found in times.values()),
        "total_ms": {role: found.total_ms for role, found in times.items()},
        "layers": list(layers.values()),
        "elsewhere": {
            "ms": {role: found.elsewhere_ms for role, found in times.items()},
            "least_ms": {role: found.elsewhere_least_ms for role, found in times.items()},
            "macs": {role: sum(macs[role].values()) - inside[role] for role in times},
        },
    }


def layer_rows(report: Report) -> list[LayerRow]:
    """Return a row for each layer and one for elsewhere, the student's slowest first.

    Empty where the layers of teacher and student were not timed.
    """
    found = report.layer_times
    if found is None or not {"teacher", "student"} <= found["total_ms"].keys():
        return []
    rows = [_row(layer["name"] or "the network", layer["kind"], layer) for layer in found["layers"]]
    rows.append(_row(ELSEWHERE, "", found["elsewhere"]))
    return sorted(rows, key=lambda row: -row.student_ms)


def shown_rows(rows: Sequence[LayerRow], most: int = _MOST_ROWS) -> list[LayerRow]:
    """Return the slowest layers, elsewhere, and all others summed as the last row."""
    layers = [row for row in rows if row.label != ELSEWHERE]
    shown, rest = set(map(id, layers[:most])), layers[most:]
    if len(rest) == 1:
        return list(rows)
    first = [row for row in rows if row.label == ELSEWHERE or id(row) in shown]
    return [*first, summed(rest, label=f"{len(rest)} other layers")] if rest else first


def summed(rows: Iterable[LayerRow], *, label: str, kind: str = "") -> LayerRow:
    """Return several rows as one."""
    several = list(rows)
    return LayerRow(
        label=label,
        kind=kind,
        teacher_ms=sum(row.teacher_ms for row in several),
        student_ms=sum(row.student_ms for row in several),
        teacher_least_ms=sum(row.teacher_least_ms for row in several),
        student_least_ms=sum(row.student_least_ms for row in several),
        teacher_macs=sum(row.teacher_macs for row in several),
        student_macs=sum(row.student_macs for row in several),
        is_cut=any(row.is_cut for row in several),
    )


def _empty(layer: LayerTime) -> dict[str, Any]:
    return {
        "name": layer.path,
        "kind": layer.kind,
        "ms": {},
        "least_ms": {},
        "macs": {},
        "params": {},
    }


def _row(label: str, kind: str, found: Mapping[str, Any]) -> LayerRow:
    keys = ("ms", "least_ms", "macs", "params")
    ms, least_ms, macs, params = (_pair(found.get(key, {})) for key in keys)
    return LayerRow(
        label=label,
        kind=kind,
        teacher_ms=float(ms[0]),
        student_ms=float(ms[1]),
        teacher_least_ms=float(least_ms[0]),
        student_least_ms=float(least_ms[1]),
        teacher_macs=int(macs[0]),
        student_macs=int(macs[1]),
        is_cut=params[1] < params[0] or macs[1] < macs[0],
    )


def _pair(by_role: Mapping[str, Any]) -> tuple[float, float]:
    return by_role.get("teacher") or 0, by_role.get("student") or 0


def _fraction(part: float, whole: float) -> str:
    return figures.percent(part / whole) if whole else figures.UNKNOWN
