"""Reports that were written before, as values again."""

from collections.abc import Mapping, Sequence
from typing import Any

from coa_compress.artifacts import History, Picture, Reference
from coa_compress.report.content import Report


def report_of(values: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> Report:
    """Return the report that ``report.json`` holds.

    Args:
        values: What ``read_report`` returned.
        pictures: Those of the run; the JSON holds their titles only.

    >>> from coa_compress.report.document import to_document
    >>> report = Report(name="x", title="X", measurements={"teacher": {"macs": 100}})
    >>> report_of(to_document(report)).measurements
    {'teacher': {'macs': 100}}
    """
    return Report(
        name=values["name"],
        title=values["title"],
        measurements=values["measurements"],
        allocation=values["allocation"],
        gate=values["gate"],
        histories={stage: _history(found) for stage, found in values["histories"].items()},
        pictures=pictures,
        recipe=values["recipe"],
        recipe_text=values["recipe_text"],
        provenance=values["provenance"],
        stage_seconds=values["stage_seconds"],
        notes=values["notes"],
        explanations=values.get("explanations", {}),
        layer_times=values.get("layer_times"),
        references=[_reference(found) for found in values.get("references", ())],
    )


def _reference(found: Mapping[str, Any]) -> Reference:
    return Reference(**{**found, "example_size": tuple(found["example_size"])})


def _history(found: Mapping[str, Any]) -> History:
    return History(
        tuple(found["steps"]),
        {name: tuple(values) for name, values in found["losses"].items()},
        tuple((step, value) for step, value in found["validation"]),
    )
