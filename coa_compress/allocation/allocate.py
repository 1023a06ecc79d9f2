"""From scores and a budget to the channels that stay."""

import warnings
from collections.abc import Sequence

from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.widths import select_channels
from coa_compress.artifacts import Allocation, Budget, ChannelGroup, Scores
from coa_compress.costs import CostFunction, CostModel, Widths, full_widths
from coa_compress.errors import BudgetError, NoEffectWarning, StructureError


def make_allocation(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    costs: CostModel,
    budget: Budget,
    allocator_name: str = "greedy",
) -> Allocation:
    """Return the channels that stay: widths by an allocator, and the best channels of each group.

    Args:
        groups: The channel groups.
        scores: Shape ``(n_channels,)`` for each group.
        costs: What widths cost.
        budget: The limits.
        allocator_name: Name in ``ALLOCATORS``.

    Raises:
        BudgetError: If the budget cannot be met, or a plug-in did not meet it.
        RegistryError: If there is no allocator of that name.
        StructureError: If groups, scores and costs are not of the same network.

    Warns:
        NoEffectWarning: If less than everything was asked for, and nothing was removed.

    >>> import torch
    >>> from coa_compress.costs import CostTerm, Extent
    >>> cost = CostFunction(("a",), (CostTerm("a.weight", 9, (Extent(0, {"a": 1}),)),))
    >>> allocation = make_allocation(
    ...     [ChannelGroup("a", 4, ())], {"a": torch.tensor([3.0, 1.0, 4.0, 1.0])},
    ...     CostModel(cost, cost), Budget(keep_macs=0.5, round_to=1, min_channels=1),
    ... )
    >>> allocation.kept["a"], allocation.macs, allocation.teacher_macs
    (tensor([0, 2]), 18, 36)
    """
    _check_scores(groups, scores)
    widths = ALLOCATORS.get(allocator_name)(groups, scores, costs, budget)
    full = full_widths([g.name for g in groups], [g.n_channels for g in groups])
    _check_within(costs.macs, budget.keep_macs, widths, full, f"{allocator_name}: macs")
    _check_within(costs.params, budget.keep_params, widths, full, f"{allocator_name}: params")
    asked = min(keep for keep in (budget.keep_macs, budget.keep_params) if keep is not None)
    if asked < 1 and widths == full:
        message = f"nothing was removed though {asked:.1%} was asked for: the network costs nothing"
        warnings.warn(message, NoEffectWarning, stacklevel=2)
    return Allocation(
        kept={name: select_channels(scores[name], width) for name, width in widths.items()},
        teacher_widths=full,
        macs=costs.macs(widths),
        params=costs.params(widths),
        teacher_macs=costs.macs(full),
        teacher_params=costs.params(full),
    )


def _check_scores(groups: Sequence[ChannelGroup], scores: Scores) -> None:
    for group in groups:
        if group.name not in scores:
            message = f"no scores for group {group.name!r}: score every group before allocating"
            raise StructureError(message)
        shape = tuple(scores[group.name].shape)
        if shape != (group.n_channels,):
            message = (
                f"scores of group {group.name!r} have shape {shape}, "
                f"expected ({group.n_channels},): score the network that was analyzed"
            )
            raise StructureError(message)


def _check_within(
    cost: CostFunction, keep: float | None, widths: Widths, full: Widths, what: str
) -> None:
    if keep is not None and cost(widths) > keep * cost(full):
        message = f"{what}: {cost(widths)} exceed {keep:.1%} of {cost(full)}: mend the allocator"
        raise BudgetError(message)
