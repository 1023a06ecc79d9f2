"""Why a budget in MACs did not turn into time: the layers to blame, and what to ask for instead."""

from collections.abc import Sequence
from dataclasses import dataclass

from coa_compress.report import figures
from coa_compress.report.content import Report
from coa_compress.report.layers import ELSEWHERE, LayerRow, layer_rows, summed
from coa_compress.report.summary import kept_fraction

FACTOR = 1.5
"""Time is far above MACs where the fraction kept of it is larger by more than this factor."""

_MOST_NAMED = 3
# a layer that makes up for less of the student's time is not worth a sentence
_LEAST_PART = 0.02


@dataclass(frozen=True, slots=True)
class Blame:
    """Why the student takes longer than its MACs suggest.

    Args:
        summary: What was kept of MACs and of time.
        layers: One sentence for each layer to blame, the worst first.
        advice: What to ask for instead.
    """

    summary: str
    layers: tuple[str, ...]
    advice: str


def blame(report: Report) -> Blame | None:
    """Return which layers keep time from falling with the MACs; None where nothing is to blame.

    Nothing is said where time was limited itself, where the student keeps at most 1.5 times the
    fraction of time that it keeps of MACs, or where no layer stands out. A layer stands out by the
    time beyond what it would take had it shrunk like the MACs of the network, in the median and
    in the least of its times, so that a busy machine accuses none; layers without MACs and
    depthwise convolutions are added up by kind.
    """
    macs, latency = (kept_fraction(report, measure) for measure in ("macs", "latency_ms"))
    if macs is None or latency is None or not _in_macs(report) or latency <= FACTOR * macs:
        return None
    rows = layer_rows(report)
    whole = summed(rows, label="")
    guilty = [row for row in _grouped(rows) if _stands_out(row, whole, macs)]
    guilty.sort(key=lambda row: row.student_ms - macs * row.teacher_ms, reverse=True)
    if not guilty or whole.student_least_ms <= FACTOR * macs * whole.teacher_least_ms:
        return None
    return Blame(
        summary=(
            f"The student keeps {figures.percent(macs)} of the MACs, "
            f"but {figures.percent(latency)} of the latency."
        ),
        layers=tuple(_sentence(row, macs, whole.student_ms) for row in guilty[:_MOST_NAMED]),
        advice=(
            f"If the time is what counts, ask for it: `keep_latency: {max(macs, 0.01):.2f}` under "
            "`allocate` limits the time of a pass, and the student is measured to keep it."
        ),
    )


def _in_macs(report: Report) -> bool:
    """Return whether MACs or parameters were limited, and time was not."""
    budget = report.allocation.get("budget") or {}
    given = {name for name, value in budget.items() if value is not None}
    return bool(given & {"keep_macs", "keep_params"}) and not (
        given & {"keep_latency", "max_latency_ms"}
    )


def _grouped(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Return rows in which what is small but many stands together, by kind."""
    alone: list[LayerRow] = []
    kinds: dict[str, list[LayerRow]] = {}
    for row in rows:
        many = row.label != ELSEWHERE and (not row.teacher_macs or _is_depthwise(row))
        (kinds.setdefault(row.kind, []) if many else alone).append(row)
    for kind, several in kinds.items():
        label = several[0].label if len(several) == 1 else f"{len(several)} layers"
        alone.append(summed(several, label=label, kind=kind))
    return alone


def _is_depthwise(row: LayerRow) -> bool:
    return row.kind.startswith("depthwise")


def _stands_out(row: LayerRow, whole: LayerRow, macs_kept: float) -> bool:
    times = (
        (row.student_ms, row.teacher_ms, whole.student_ms),
        (row.student_least_ms, row.teacher_least_ms, whole.student_least_ms),
    )
    return all(
        student_ms > FACTOR * macs_kept * teacher_ms > 0
        and student_ms - macs_kept * teacher_ms > _LEAST_PART * whole_ms
        for student_ms, teacher_ms, whole_ms in times
    )


def _sentence(row: LayerRow, macs_kept: float, whole_ms: float) -> str:
    took = figures.cost("latency_ms", row.student_ms)
    part = figures.percent(row.student_ms / whole_ms)
    return (
        f"{_subject(row)}: {took}, {part} of the student's pass; {row.time_kept} of its time in "
        f"the teacher is left, because {_reason(row, macs_kept)}."
    )


def _subject(row: LayerRow) -> str:
    if row.label == ELSEWHERE:
        return "Outside of all layers"
    if row.label.endswith(" layers"):
        return f"{row.kind}, {row.label}"
    return f"`{row.label}` ({row.kind})"


def _reason(row: LayerRow, macs_kept: float) -> str:
    if row.label == ELSEWHERE:
        return "element-wise operations, joining and resampling cost time but hardly any MACs"
    if not row.teacher_macs:
        return "this kind has no MACs, so that a budget in MACs does not see it"
    if not row.is_cut:
        return "it was not cut"
    if _is_depthwise(row):
        return "a depthwise convolution has few MACs for what it reads and writes"
    if row.student_macs > FACTOR * macs_kept * row.teacher_macs:
        return f"it keeps {row.macs_kept} of its MACs, more than the network"
    return f"it became too narrow to use the device well ({row.macs_kept} of its MACs)"
