"""The gate: whether an adaptation helped, by several measures at once and beyond their noise."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from coa_compress.errors import SettingError
from coa_compress.settings import NonNegativeFloat, check_ranges

Sample = Sequence[float]
"""One value for each input, in a fixed order."""

Kind = Literal["defect", "quality", "skill"]

SKILL = "skill"
"""What the measure of the skill is called."""

_LEAST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainMeasures:
    """What the gate looks at, by measure one value for each input.

    Args:
        defects: What adaptation should lower on held-out real inputs, such as haze; lower is
            better. The first is the leading one.
        qualities: No-reference quality of the same outputs, which must not pay for it.
        skill: Quality on labelled validation inputs, such as PSNR in dB; higher is better.
        lower_is_better: Names of the qualities that are better when lower; the others are better
            when higher.

    Raises:
        SettingError: If there is no defect or no quality, or a measure has no value.
    """

    defects: Mapping[str, Sample]
    qualities: Mapping[str, Sample]
    skill: Sample
    lower_is_better: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.defects or not self.qualities:
            message = (
                f"the gate needs a defect and a quality, got {list(self.defects)} and "
                f"{list(self.qualities)}: no single no-reference measure is trusted"
            )
            raise SettingError(message)
        for name, values in self.samples():
            if not len(values):
                message = f"measure {name!r} of the gate has no value: give one for each input"
                raise SettingError(message)
        unknown = [name for name in self.lower_is_better if name not in self.qualities]
        if unknown:
            message = (
                f"lower_is_better names {unknown[0]!r}, which is no quality: "
                f"there are {', '.join(self.qualities)}"
            )
            raise SettingError(message)

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yield the name and the values of every measure."""
        yield from self.defects.items()
        yield from self.qualities.items()
        yield SKILL, self.skill


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """What an adapted student must satisfy to be accepted.

    Args:
        min_defect_fall: Least relative fall of the leading defect; no other defect may rise.
        max_quality_drop: Largest relative loss of each quality.
        max_skill_drop: Largest fall of the skill on labelled data, in its own unit (dB).
        standard_errors: By how many standard errors of the paired differences each rule must
            hold; 0 looks at the means alone.
    """

    min_defect_fall: NonNegativeFloat = 0.01
    max_quality_drop: NonNegativeFloat = 0.02
    max_skill_drop: NonNegativeFloat = 0.3
    standard_errors: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the gate found of one measure.

    Args:
        kind: Whether it is a defect, a quality or the skill.
        measure: Its name.
        before: Mean before adaptation.
        after: Mean of the adapted student.
        change: Mean of the paired differences: relative to ``before`` for a defect or a quality,
            in its own unit for the skill; above 0 where the value rose.
        standard_error: Of ``change``; None where there is a single input.
        least_gain: What the change for the better must at least be, in the unit of ``change``;
            below 0 where a loss is allowed.
        lower_is_better: Whether a fall is the better.
        held: Whether the rule holds.
    """

    kind: Kind
    measure: str
    before: float
    after: float
    change: float
    standard_error: float | None
    least_gain: float
    lower_is_better: bool
    held: bool

    @property
    def gain(self) -> float:
        """The change for the better; below 0 for the worse."""
        return -self.change if self.lower_is_better else self.change


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The verdict on an adaptation.

    Args:
        before: Measures of the student before adaptation.
        after: Measures of the adapted student.
        rules: What had to hold.
        findings: One for each measure: defects, then qualities, then the skill.
    """

    before: DomainMeasures
    after: DomainMeasures
    rules: GateRules
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        """Whether the adapted student is used: every rule holds."""
        return all(finding.held for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each rule that failed; empty when accepted."""
        return tuple(_reason(found, self.rules) for found in self.findings if not found.held)


def judge(before: DomainMeasures, after: DomainMeasures, rules: GateRules) -> Gate:
    """Return whether an adaptation is accepted, and each reason why not.

    No single no-reference measure is trusted: every defect must fall, and neither a quality on
    real inputs nor the skill on labelled ones may pay for it. Each input is compared with itself,
    and a rule holds only where it holds by ``rules.standard_errors`` standard errors of the mean
    difference, so that in doubt the student before adaptation stays.

    Args:
        before: Measures of the student before adaptation.
        after: Measures of the adapted student on the same inputs.
        rules: What must hold.

    Raises:
        SettingError: If the two have other measures or another number of inputs.

    >>> old = DomainMeasures(defects={"haze": [0.5, 0.6]}, qualities={"look": [10.0, 9.0]},
    ...                      skill=[27.0])
    >>> new = DomainMeasures(defects={"haze": [0.4, 0.5]}, qualities={"look": [10.0, 9.0]},
    ...                      skill=[26.0])
    >>> judge(old, new, GateRules()).reasons
    ('skill on labelled data fell by 1.00, more than the 0.30 allowed',)
    """
    _check_alike(before, after)
    findings = []
    for number, (name, values) in enumerate(before.defects.items()):
        least = rules.min_defect_fall if number == 0 else 0.0
        pair = (values, after.defects[name])
        findings.append(_found("defect", name, pair, least, falls=True, rules=rules))
    for name, values in before.qualities.items():
        falls = name in before.lower_is_better
        pair = (values, after.qualities[name])
        least = -rules.max_quality_drop
        findings.append(_found("quality", name, pair, least, falls=falls, rules=rules))
    pair = (before.skill, after.skill)
    findings.append(_found("skill", SKILL, pair, -rules.max_skill_drop, falls=False, rules=rules))
    return Gate(before=before, after=after, rules=rules, findings=tuple(findings))


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """Return a verdict as values that JSON can hold, with every value that it rests on."""
    return {**asdict(gate), "accepted": gate.accepted, "reasons": list(gate.reasons)}


def gate_from_json(found: Mapping[str, Any]) -> Gate:
    """Return the verdict that ``gate_to_json`` was given."""
    return Gate(
        before=DomainMeasures(**found["before"]),
        after=DomainMeasures(**found["after"]),
        rules=GateRules(**found["rules"]),
        findings=tuple(Finding(**finding) for finding in found["findings"]),
    )


def _check_alike(before: DomainMeasures, after: DomainMeasures) -> None:
    counts = [{name: len(values) for name, values in one.samples()} for one in (before, after)]
    if counts[0] != counts[1]:
        message = (
            f"cannot compare the measures before and after adaptation, with {counts[0]} and "
            f"{counts[1]} values: measure both students on the same inputs"
        )
        raise SettingError(message)


def _found(
    kind: Kind,
    name: str,
    pair: tuple[Sample, Sample],
    least_gain: float,
    *,
    falls: bool,
    rules: GateRules,
) -> Finding:
    """Return what was found of one measure; ``falls`` says that lower is better."""
    before, after = (math.fsum(values) / len(values) for values in pair)
    unit = 1.0 if kind == "skill" else max(abs(before), _LEAST)
    differences = [(new - old) / unit for old, new in zip(*pair, strict=True)]
    change = math.fsum(differences) / len(differences)
    error = _standard_error(differences)
    gain = -change if falls else change
    margin = rules.standard_errors * (error or 0.0)
    return Finding(
        kind=kind,
        measure=name,
        before=before,
        after=after,
        change=change,
        standard_error=error,
        least_gain=least_gain,
        lower_is_better=falls,
        held=gain - margin >= least_gain,
    )


def _standard_error(differences: Sequence[float]) -> float | None:
    count = len(differences)
    if count < 2:
        return None
    mean = math.fsum(differences) / count
    squares = math.fsum((difference - mean) ** 2 for difference in differences)
    return math.sqrt(squares / (count - 1) / count)


def _reason(found: Finding, rules: GateRules) -> str:
    """Return why a rule does not hold: the measure, its change, the limit."""
    skill = found.kind == "skill"
    shown = "{:.2f}".format if skill else "{:.1%}".format
    change = f"{'rose' if found.change > 0 else 'fell'} by {shown(abs(found.change))}"
    what = f"{found.measure} on {'labelled data' if skill else 'held-out real inputs'} {change}"
    limit = shown(abs(found.least_gain))
    demand = f"{limit} {'allowed' if found.least_gain < 0 else 'asked for'}"
    if found.gain >= found.least_gain and found.standard_error:
        margin = f"{rules.standard_errors:g} x the standard error of {shown(found.standard_error)}"
        return f"{what}, within {margin} of the {demand}"
    if found.kind == "defect":
        rose = found.change > 0
        return f"{what}, and must not rise" if rose else f"{what}, less than the {demand}"
    return f"{what}, more than the {demand}"
