"""Losses on unlabelled real inputs, and the gate that judges what they did."""

import torch
from torch import Tensor, nn

from coa_compress.artifacts import DomainMeasures, Gate, GateRules


def consistency_loss(output: Tensor, average: nn.Module, real: Tensor) -> Tensor:
    """Return the distance of a student's outputs on real inputs from those of its slow average.

    The pseudo-label is the output of the slow average of the student, the mean teacher of
    Tarvainen & Valpola (2017, arXiv:1703.01780), as in the real-domain stage of CoA (Ma et al.,
    CVPR 2025).

    Args:
        output: What the student returned.
        average: Its slow average; no gradient flows into it.
        real: Real inputs, shape ``(batch, channels, height, width)``.

    Returns:
        A scalar: the mean absolute difference.

    >>> real = torch.rand(1, 3, 4, 4)
    >>> consistency_loss(real + 0.5, nn.Identity(), real).item()
    0.5
    """
    with torch.no_grad():
        label: Tensor = average(real)
    return (output - label).abs().mean()


def judge(before: DomainMeasures, after: DomainMeasures, rules: GateRules) -> Gate:
    """Return whether an adaptation is accepted, and each reason why not.

    No single no-reference measure is trusted: the defect must fall, and neither the quality on
    real inputs nor the skill on labelled ones may pay for it.

    >>> old = DomainMeasures(defect=0.5, quality=10.0, skill=27.0)
    >>> judge(old, DomainMeasures(defect=0.4, quality=10.0, skill=26.9), GateRules()).accepted
    True
    >>> judge(old, DomainMeasures(defect=0.4, quality=10.0, skill=25.0), GateRules()).reasons
    ('skill on labelled data fell by 2.00, more than the 0.30 allowed',)
    """
    reasons = []
    fall = _relative_fall(before.defect, after.defect)
    if not fall >= rules.min_defect_fall:
        reasons.append(
            f"the defect on held-out real inputs fell by {fall:.1%}, "
            f"less than the {rules.min_defect_fall:.1%} asked for"
        )
    drop = _relative_fall(before.quality, after.quality)
    if not drop <= rules.max_quality_drop:
        reasons.append(
            f"quality on held-out real inputs fell by {drop:.1%}, "
            f"more than the {rules.max_quality_drop:.1%} allowed"
        )
    lost = before.skill - after.skill
    if not lost <= rules.max_skill_drop:
        reasons.append(
            f"skill on labelled data fell by {lost:.2f}, "
            f"more than the {rules.max_skill_drop:.2f} allowed"
        )
    return Gate(
        accepted=not reasons, before=before, after=after, rules=rules, reasons=tuple(reasons)
    )


def _relative_fall(before: float, after: float) -> float:
    return (before - after) / max(abs(before), 1e-12)
