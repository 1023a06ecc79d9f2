"""What a report is made of: one value that holds everything a reader may ask about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coa_compress.artifacts import Allocation, Budget, History, Picture, Reference, Scores
from coa_compress.gate import Gate

Measurements = Mapping[str, Mapping[str, Any]]
"""By role (teacher, student, adapted), then by measure: a number, or numbers by split."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """A finished run.

    Args:
        name: Short name, as in the recipe.
        title: Headline name for people.
        measurements: By role, then by measure. ``params``, ``macs``, ``latency_ms``,
            ``peak_memory_mb`` and ``file_bytes`` are numbers, as are the ``macs_fvcore`` and
            ``macs_thop`` of the cross-check; every measure of the task is a mapping from split to
            number. What is missing is left out or None.
        allocation: ``groups`` (each with ``name``, ``teacher_width``, ``student_width`` and maybe
            ``score_kept_fraction``), ``budget``, ``macs_kept``, ``params_kept``, ``allocator``,
            ``gap`` with ``gap_within``, and where latency or memory was limited what the built
            student was measured to keep: ``latency_kept`` and ``memory_kept`` with percentiles,
            and all of it in ``measured``.
        gate: ``accepted``, ``findings`` (one for each measure), ``rules``, ``reasons``, and maybe
            ``labels`` by measure; None without adaptation.
        histories: Losses of each training stage, in order.
        pictures: Rows of images to show.
        recipe: The recipe with every default filled in.
        recipe_text: The same as YAML.
        provenance: Versions, seed, device, threads, commit, example size, times, counter.
        stage_seconds: Wall-clock time of each stage, in order.
        notes: Sentences the reader must not miss: weak points, refusals, patches.
        explanations: A sentence on what a measure means, by measure, from the task.
        layer_times: Where the time of teacher and student goes: ``rounds``, ``total_ms`` by role,
            ``layers`` (each with ``name``, ``kind``, and by role ``ms``, ``least_ms``, ``macs`` and
            ``params``) and ``elsewhere`` with ``ms``, ``least_ms`` and ``macs``; None where it was
            not measured.
        references: Other networks on the same test splits, from the task.
    """

    name: str
    title: str
    measurements: Measurements
    allocation: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    histories: Mapping[str, History] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    explanations: Mapping[str, str] = field(default_factory=dict)
    layer_times: Mapping[str, Any] | None = None
    references: Sequence[Reference] = ()


def describe_allocation(
    allocation: Allocation, budget: Budget, *, scores: Scores | None = None
) -> dict[str, Any]:
    """Return an allocation as the mapping that a report holds.

    Args:
        allocation: The widths that were chosen.
        budget: What they had to meet.
        scores: Importance of each channel, to say how much of it was kept.

    >>> import torch
    >>> allocation = Allocation(kept={"stem": torch.arange(8)}, teacher_widths={"stem": 16},
    ...                         macs=50, params=5, teacher_macs=100, teacher_params=10)
    >>> described = describe_allocation(allocation, Budget(keep_macs=0.5))
    >>> described["groups"], described["macs_kept"]
    ([{'name': 'stem', 'teacher_width': 16, 'student_width': 8}], 0.5)
    """
    groups: list[dict[str, Any]] = []
    for name, kept in allocation.kept.items():
        group = {
            "name": name,
            "teacher_width": allocation.teacher_widths[name],
            "student_width": len(kept),
        }
        if scores is not None and name in scores:
            total = float(scores[name].sum())
            group["score_kept_fraction"] = float(scores[name][kept].sum()) / total if total else 1.0
        groups.append(group)
    return {
        "groups": groups,
        "budget": asdict(budget),
        "macs_kept": allocation.macs / max(1, allocation.teacher_macs),
        "params_kept": allocation.params / max(1, allocation.teacher_params),
        "allocator": allocation.allocator,
        "evenness": allocation.evenness,
        "gap": allocation.gap,
        "gap_within": list(allocation.bounded_by),
        **_measured(allocation),
    }


def _measured(allocation: Allocation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in allocation.measured.items():
        found[f"{name}_kept"] = one.kept
        found[f"{name}_kept_p10"] = one.kept_p10
        found[f"{name}_kept_p90"] = one.kept_p90
    if found:
        found["measured"] = {name: asdict(one) for name, one in allocation.measured.items()}
    return found


def describe_gate(gate: Gate, *, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the verdict of the gate as the mapping that a report holds.

    Args:
        gate: The verdict.
        labels: Names of the measures for people, by measure.

    >>> from coa_compress.gate import DomainMeasures, GateRules, judge
    >>> same = DomainMeasures(defects={"haze": [1.0]}, qualities={"look": [2.0]}, skill=[30.0])
    >>> described = describe_gate(judge(same, same, GateRules()))
    >>> described["accepted"], [found["measure"] for found in described["findings"]]
    (False, ['haze', 'look', 'skill'])
    """
    return {
        "accepted": gate.accepted,
        "findings": [asdict(finding) for finding in gate.findings],
        "rules": asdict(gate.rules),
        "reasons": list(gate.reasons),
        "labels": dict(labels or {}),
    }
