"""The tables of an ablation, from the rows of its runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coa_compress.ablation.comparison import (
    Spread,
    difference,
    figures_by_seed,
    spread_of,
    verdict,
)
from coa_compress.ablation.rows import Measure, Row, measures_of, seconds_of
from coa_compress.report import figures

Document = Mapping[str, Any]
"""What ``ablation.json`` holds; see ``coa_compress.ablation.running.document_of``."""

_COSTS: tuple[Measure, ...] = (("macs", ""), ("params", ""))
_WHEN = ("before", "after")


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Args:
        title: What it shows.
        head: The columns; the first one names the variant.
        rows: As many texts each as there are columns.
        note: A sentence to go with it, or nothing.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables_of(document: Document) -> list[Table]:
    """Return the tables of an ablation that have something to show.

    Args:
        document: What ``ablation.json`` holds.
    """
    made = [
        _overview(document),
        *(_figures(document, role) for role in ("student", "adapted")),
        _differences(document),
        _gates(document),
    ]
    return [table for table in made if len(table.head) > 1 and table.rows]


def differences_of(document: Document) -> list[dict[str, Any]]:
    """Return what each variant's final network differs in from that of the reference.

    Args:
        document: What ``ablation.json`` holds.

    Returns:
        For each variant, measure and split: ``mean`` and ``deviation`` of the difference over
        the seeds, how many those are, and the ``verdict``.
    """
    return [
        {
            "variant": variant,
            "measure": measure[0],
            "split": measure[1],
            "mean": change.mean,
            "deviation": change.deviation,
            "n": change.n,
            "verdict": verdict(change, document["measures"].get(measure[0])),
        }
        for variant in _others(document)
        for measure in measures_of(document["rows"], list(document["measures"]))
        if (change := _change(document, variant, measure)) is not None
    ]


def _overview(document: Document) -> Table:
    lines = []
    for variant in _present(document):
        chosen = [row for row in document["rows"] if row["variant"] == variant]
        seconds = spread_of([seconds_of(row) for row in chosen])
        costs = [
            _cost(name, spread_of(_values(document, variant, "final", (name, split))))
            for name, split in _COSTS
        ]
        time = figures.duration(seconds.mean) if seconds else figures.UNKNOWN
        lines.append((variant, *costs, _accepted(chosen), str(len(chosen)), time))
    note = "Time: of all stages of one run, as if nothing were shared."
    head = ("variant", "MACs", "parameters", "adaptation accepted", "seeds", "time")
    return Table("Variants", head, tuple(lines), note)


def _figures(document: Document, role: str) -> Table:
    measures = [
        measure
        for measure in measures_of(document["rows"], list(document["measures"]))
        if any(_values(document, variant, role, measure) for variant in _present(document))
    ]
    lines = [
        (variant, *(_mean(m, spread_of(_values(document, variant, role, m))) for m in measures))
        for variant in _present(document)
        if any(_values(document, variant, role, measure) for measure in measures)
    ]
    title = "Student" if role == "student" else "Adapted"
    note = "" if role == "student" else "What the gate refused is the network before adaptation."
    return Table(title, ("variant", *map(_column, measures)), tuple(lines), note)


def _differences(document: Document) -> Table:
    measures = measures_of(document["rows"], list(document["measures"]))
    lines = [
        (variant, *(_difference(document, variant, measure) for measure in measures))
        for variant in _others(document)
    ]
    note = (
        f"Final network of each variant less that of {document['reference']}, seed by seed: mean "
        "± standard deviation. Marked where the mean is above the spread; of differences that are "
        "chance alone, between three seeds, about one in four is."
    )
    title = f"Differences from {document['reference']}"
    return Table(title, ("variant", *map(_column, measures)), tuple(lines), note)


def _gates(document: Document) -> Table:
    names = dict.fromkeys(
        finding["measure"]
        for row in document["rows"]
        if row["gate"]
        for finding in row["gate"]["findings"]
    )
    lines = []
    for variant in _present(document):
        gates = [r["gate"] for r in document["rows"] if r["variant"] == variant and r["gate"]]
        if gates:
            lines.append((variant, *(_changed(gates, name) for name in names)))
    labels: dict[str, str] = {}
    for row in document["rows"]:
        labels |= (row["gate"] or {}).get("labels", {})
    head = ("variant", *(labels.get(name, name) for name in names))
    note = "What adaptation changed, before the gate decided: mean over the seeds before and after."
    return Table("What the gate saw", head, tuple(lines), note)


def _changed(gates: Sequence[Mapping[str, Any]], name: str) -> str:
    texts = []
    for when in _WHEN:
        findings = [finding for gate in gates for finding in gate["findings"]]
        found = [one[when] for one in findings if one["measure"] == name]
        spread = spread_of([value for value in found if figures.is_number(value)])
        texts.append(figures.UNKNOWN if spread is None else figures.score(name, spread.mean))
    return " to ".join(texts)


def _present(document: Document) -> list[str]:
    done = {row["variant"] for row in document["rows"]}
    return [variant for variant in document["variants"] if variant in done]


def _others(document: Document) -> list[str]:
    return [variant for variant in _present(document) if variant != document["reference"]]


def _values(document: Document, variant: str, role: str, measure: Measure) -> list[float]:
    return list(figures_by_seed(document["rows"], variant, role, measure).values())


def _change(document: Document, variant: str, measure: Measure) -> Spread | None:
    ours, theirs = (
        figures_by_seed(document["rows"], name, "final", measure)
        for name in (variant, document["reference"])
    )
    return difference(ours, theirs)


def _difference(document: Document, variant: str, measure: Measure) -> str:
    change = _change(document, variant, measure)
    if change is None:
        return figures.UNKNOWN
    digits = 2 if figures.unit(measure[0]) == "dB" else 3
    text = figures.signed(change.mean, digits).removeprefix("±")
    if change.deviation is not None:
        text += f" ± {change.deviation:.{digits}f}"
    word = verdict(change, document["measures"].get(measure[0]))
    return f"{text} {word}" if word in ("better", "worse", "differs") else text


def _accepted(rows: Iterable[Row]) -> str:
    gates = [row["gate"]["accepted"] for row in rows if row["gate"]]
    return f"{sum(gates)} of {len(gates)}" if gates else figures.UNKNOWN


def _column(measure: Measure) -> str:
    name, split = measure
    unit = f" {figures.unit(name)}" if figures.unit(name) else ""
    return f"{figures.label(name)}{unit}, {split}"


def _cost(name: str, spread: Spread | None) -> str:
    return figures.UNKNOWN if spread is None else figures.cost(name, spread.mean)


def _mean(measure: Measure, spread: Spread | None) -> str:
    if spread is None:
        return figures.UNKNOWN
    text = figures.score(measure[0], spread.mean)
    digits = len(text.partition(".")[2])
    return text if spread.deviation is None else f"{text} ± {spread.deviation:.{digits}f}"
