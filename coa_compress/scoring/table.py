"""What a person wants to know of each channel group, as rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from coa_compress.artifacts import ChannelGroup, Curves, Scores
from coa_compress.costs import CostFunction, full_widths
from coa_compress.curves import curve_losses

PARTS = (0.75, 0.5, 0.25)
"""Parts of the channels that stay, for which rows tell the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group.

    Args:
        group: Its name.
        channels: How many there are.
        macs_share: Part of all MACs that read or write the group; as most MACs do both for two
            groups, the shares add up to more than 1.
        score_mass: Part of the sum of all scores.
        losses: Relative change of the output with ``PARTS`` of the channels left.
    """

    group: str
    channels: int
    macs_share: float
    score_mass: float
    losses: tuple[float, ...]


def sensitivity_rows(
    groups: Sequence[ChannelGroup], scores: Scores, curves: Curves, macs: CostFunction
) -> list[GroupRow]:
    """Return a row for each group, in the order of the network.

    Args:
        groups: The groups.
        scores: Shape ``(n_channels,)`` by group name.
        curves: Measured losses by group name.
        macs: MACs as a function of the widths.

    >>> import torch
    >>> from coa_compress.artifacts import SensitivityCurve
    >>> from coa_compress.costs import CostTerm, Extent
    >>> cost = CostFunction(("a",), (CostTerm("a.w", 9, (Extent(0, {"a": 1}),)),))
    >>> curves = {"a": SensitivityCurve((2, 4), (0.5, 0.0))}
    >>> sensitivity_rows([ChannelGroup("a", 4, ())], {"a": torch.ones(4)}, curves, cost)[0].losses
    (0.25, 0.5, 2.0)
    """
    full = full_widths([g.name for g in groups], [g.n_channels for g in groups])
    total = sum(float(scores[group.name].sum()) for group in groups)
    whole = max(macs(full), 1)
    return [
        GroupRow(
            group=group.name,
            channels=group.n_channels,
            macs_share=1 - macs({**full, group.name: 0}) / whole,
            score_mass=float(scores[group.name].sum()) / total if total > 0 else 0.0,
            losses=tuple(
                float(curve_losses(curves[group.name])[max(1, round(part * group.n_channels))])
                for part in PARTS
            ),
        )
        for group in groups
    ]
