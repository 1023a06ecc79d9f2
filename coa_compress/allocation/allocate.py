"""From scores and a budget to the channels that stay."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.bound import least_loss
from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.losses import expected_losses
from coa_compress.allocation.space import Levels, WidthSpace, any_space, width_space
from coa_compress.allocation.widths import select_channels
from coa_compress.artifacts import Allocation, Budget, ChannelGroup, Curves, ExpectedLosses, Scores
from coa_compress.costs import CostModel, Widths
from coa_compress.errors import BudgetError, NoEffectWarning

DEFAULT_ALLOCATOR = "knapsack"
"""Never worse than ``greedy`` by the losses it is given, and fast."""


def make_allocation(  # noqa: PLR0913 - each is a setting of its own
    groups: Sequence[ChannelGroup],
    scores: Scores,
    costs: CostModel,
    budget: Budget,
    allocator_name: str = DEFAULT_ALLOCATOR,
    *,
    curves: Curves | None = None,
    evenness: float = 0.0,
) -> Allocation:
    """Return the channels that stay: widths by an allocator, and the best channels of each group.

    Args:
        groups: The channel groups.
        scores: Shape ``(n_channels,)`` for each group; the channels with the highest stay.
        costs: What widths cost.
        budget: The limits.
        allocator_name: Name in ``ALLOCATORS``.
        curves: Measured sensitivity of each group; it then decides the widths, not the scores.
        evenness: How far groups are taken to lose alike, from 0 to 1; see ``evened``.

    Raises:
        BudgetError: If the budget cannot be met, or a plug-in did not meet it.
        RegistryError: If there is no allocator of that name.
        StructureError: If groups, scores, curves and costs are not of the same network.

    Warns:
        NoEffectWarning: If less than everything was asked for, and nothing was removed.

    >>> import torch
    >>> from coa_compress.costs import CostFunction, CostTerm, Extent
    >>> cost = CostFunction(("a",), (CostTerm("a.weight", 9, (Extent(0, {"a": 1}),)),))
    >>> allocation = make_allocation(
    ...     [ChannelGroup("a", 4, ())], {"a": torch.tensor([3.0, 1.0, 4.0, 1.0])},
    ...     CostModel(cost, cost), Budget(keep_macs=0.5, round_to=1, min_channels=1),
    ... )
    >>> allocation.kept["a"], allocation.macs, allocation.teacher_macs
    (tensor([0, 2]), 18, 36)
    """
    # the scores must be good in any case: they choose the channels
    losses = expected_losses(groups, scores, evenness=evenness)
    if curves is not None:
        losses = expected_losses(groups, scores, curves, evenness=evenness)
    widths = ALLOCATORS.get(allocator_name)(groups, losses, costs, budget)
    space = width_space(groups, costs, budget)
    vector = np.array([widths[name] for name in space.names], dtype=np.int64)
    _check_within(space, space.costs(vector[None])[0], allocator_name)
    if widths == space.full_widths:
        _warn_of_no_effect(space)
    found = _answer(space, scores, losses, costs, widths, allocator=allocator_name)
    return replace(found, evenness=evenness)


def narrowest_allocation(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    costs: CostModel,
    budget: Budget,
    *,
    curves: Curves | None = None,
    evenness: float = 0.0,
) -> Allocation:
    """Return the allocation with the least width of every group, whether it is enough or not.

    Args:
        groups: The channel groups.
        scores: Shape ``(n_channels,)`` for each group; the channels with the highest stay.
        costs: What widths cost.
        budget: Says which widths are allowed.
        curves: Measured sensitivity of each group.
        evenness: Of its losses, as in ``make_allocation``, so that the two can be compared.
    """
    losses = expected_losses(groups, scores, curves, evenness=evenness)
    space = any_space(groups, costs, budget)
    widths = space.by_name(np.zeros_like(space.top))
    found = _answer(space, scores, losses, costs, widths, allocator="narrowest")
    return replace(found, evenness=evenness)


def _answer(
    space: WidthSpace,
    scores: Scores,
    losses: ExpectedLosses,
    costs: CostModel,
    widths: Widths,
    *,
    allocator: str,
) -> Allocation:
    vector = np.array([widths[name] for name in space.names], dtype=np.int64)
    taken = space.costs(vector[None])[0]
    full = space.full_widths
    loss = float(sum(losses[name][width] for name, width in widths.items()))
    bound, bounded_by = least_loss(space, space.level_losses(losses), _nearest(space, vector))
    return Allocation(
        kept={name: select_channels(scores[name], width) for name, width in widths.items()},
        teacher_widths=full,
        macs=costs.macs(widths),
        params=costs.params(widths),
        teacher_macs=costs.macs(full),
        teacher_params=costs.params(full),
        allocator=allocator,
        loss=loss,
        least_loss=min(bound, loss),
        bounded_by=bounded_by,
        predicted={
            limit.resource: float(cost) / (limit.full or 1.0)
            for limit, cost in zip(space.limits, taken, strict=True)
            if limit.resource in ("latency", "memory")
        },
    )


def _nearest(space: WidthSpace, widths: NDArray[np.int64]) -> Levels:
    """Return the highest level of each group that is not wider; the least where there is none."""
    levels = [
        max(sum(one <= width for one in allowed) - 1, 0)
        for allowed, width in zip(space.allowed, widths.tolist(), strict=True)
    ]
    return np.array(levels, dtype=np.int64)


def _check_within(space: WidthSpace, taken: NDArray[np.float64], allocator: str) -> None:
    for limit, cost in zip(space.limits, taken.tolist(), strict=True):
        if cost > limit.most:
            message = (
                f"{allocator}: {limit.resource}: {limit.worded(cost)} exceed "
                f"{limit.worded(limit.most)}: mend the allocator"
            )
            raise BudgetError(message)


def _warn_of_no_effect(space: WidthSpace) -> None:
    for limit in space.limits:
        if limit.keep is None:
            message = f"nothing was removed: {limit.worded(limit.most)} of {limit.resource} "
            message += f"were asked for, and the teacher takes {limit.worded(limit.full)}"
        elif limit.keep < 1:
            message = f"nothing was removed though {limit.keep:.1%} was asked for: "
            message += "the network costs nothing"
        else:
            continue
        warnings.warn(message, NoEffectWarning, stacklevel=3)
        return
