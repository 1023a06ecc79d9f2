"""A report as plain JSON values, in the format that ``report.schema.json`` states."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from torch import Tensor

from coa_compress.report.blame import blame
from coa_compress.report.content import Report
from coa_compress.report.summary import final_role, headline

SCHEMA_VERSION = 2


def to_document(report: Report) -> dict[str, Any]:
    """Return a report as values that JSON can hold.

    Infinite and undefined numbers become None. Of the pictures only titles, columns and captions
    are kept.

    Raises:
        TypeError: If the report holds something that JSON has no word for.

    >>> document = to_document(Report(name="x", title="X", measurements={
    ...     "teacher": {"macs": 100}, "student": {"macs": float("inf")}}))
    >>> document["schema_version"], document["measurements"]["student"]
    (2, {'macs': None})
    """
    histories = {
        stage: {
            "steps": history.steps,
            "losses": history.losses,
            "validation": history.validation,
        }
        for stage, history in report.histories.items()
    }
    pictures = [
        {"title": p.title, "columns": list(p.images), "captions": p.captions}
        for p in report.pictures
    ]
    values = {
        "schema_version": SCHEMA_VERSION,
        "name": report.name,
        "title": report.title,
        "headline": headline(report),
        "final": final_role(report),
        "measurements": report.measurements,
        "allocation": report.allocation,
        "gate": report.gate,
        "histories": histories,
        "pictures": pictures,
        "recipe": report.recipe,
        "recipe_text": report.recipe_text,
        "provenance": report.provenance,
        "stage_seconds": report.stage_seconds,
        "notes": report.notes,
        "explanations": report.explanations,
        "layer_times": report.layer_times,
        "blame": None if (found := blame(report)) is None else asdict(found),
        "references": [asdict(reference) for reference in report.references],
    }
    return {key: _plain(value, key) for key, value in values.items()}


def to_json(report: Report) -> str:
    """Return a report as the text of ``report.json``.

    >>> to_json(Report(name="x", title="X", measurements={})).splitlines()[1]
    '  "schema_version": 2,'
    """
    return json.dumps(to_document(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``report.json``.

    >>> schema()["$schema"]
    'https://json-schema.org/draft/2020-12/schema'
    """
    text = files("coa_compress.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Tensor) or hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item, where) for item in value]
    message = f"{where} of the report is a {type(value).__name__}, which JSON cannot hold"
    raise TypeError(message)
