"""Means, spreads, and what a part that was taken away is worth."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coa_compress.ablation.rows import Measure, Row, figure
from coa_compress.recipe.ablation import Better

Verdict = Literal["better", "worse", "differs", "within the spread", "one seed"]
"""What a difference means: beyond the spread it is better or worse, or just a difference where
nobody said which way is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the seeds.

    Args:
        mean: Over the seeds.
        deviation: Sample standard deviation; None of one seed.
        n: How many seeds.
    """

    mean: float
    deviation: float | None
    n: int


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return mean and spread, or None of nothing.

    >>> spread_of([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, n=2)
    """
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation, n=len(values))


def figures_by_seed(
    rows: Sequence[Row], variant: str, role: str, measure: Measure
) -> dict[int, float]:
    """Return one figure of a variant by seed; seeds without it are left out."""
    found = {
        int(row["seed"]): figure(row, role, measure) for row in rows if row["variant"] == variant
    }
    return {seed: value for seed, value in found.items() if value is not None}


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Spread | None:
    """Return the difference of two variants, seed by seed: what both share cancels out.

    Args:
        values: Figure by seed.
        reference: Figure by seed of the variant to compare with.

    Returns:
        Mean and spread over the seeds that both have; None if there is none.

    >>> difference({0: 1.0, 1: 5.0}, {0: 2.0, 1: 6.0})
    Spread(mean=-1.0, deviation=0.0, n=2)
    """
    return spread_of([values[seed] - reference[seed] for seed in values if seed in reference])


def verdict(change: Spread, better: Better | None) -> Verdict:
    """Return what a difference means; it counts where its mean is above its spread.

    With three seeds that is weak evidence: by chance alone one difference in about four counts.

    Args:
        change: A variant less the reference.
        better: Which way the measure improves, or None if nobody said.

    >>> verdict(Spread(mean=-0.5, deviation=0.1, n=3), "higher")
    'worse'
    >>> verdict(Spread(mean=-0.5, deviation=0.7, n=3), "higher")
    'within the spread'
    """
    if change.deviation is None:
        return "one seed"
    if abs(change.mean) <= change.deviation:
        return "within the spread"
    if better is None:
        return "differs"
    return "better" if (change.mean > 0) == (better == "higher") else "worse"
