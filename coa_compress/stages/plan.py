"""The plan of a run as text: groups, widths and predicted cost, without training anything."""

from collections.abc import Sequence

from coa_compress.artifacts import Allocation
from coa_compress.errors import RecipeError
from coa_compress.stages.allocate import Allocate
from coa_compress.stages.state import Context, Stage, State

_PLANNED = ("score",)


def plan_table(stages: Sequence[Stage], state: State, context: Context) -> str:
    """Return what each group would keep, and what the student would cost.

    Args:
        stages: All stages of the recipe; those before the cut are run, except training.
        state: Where the run would start.
        context: What stages are given.

    Raises:
        RecipeError: If the recipe does not allocate.
    """
    for stage in stages:
        if isinstance(stage, Allocate):
            state = stage.plan(state, context)
        elif stage.name in _PLANNED:
            state = stage.run(state, context)
    allocation = state.allocation
    if allocation is None:
        message = "there is nothing to plan: add stages 'score' and 'allocate' to the recipe"
        raise RecipeError(message)
    lines = [*_widths(allocation), "", *_costs(allocation)]
    lines.append(f"stages  {' -> '.join(stage.name for stage in stages)}")
    return "\n".join(lines)


def _widths(allocation: Allocation) -> list[str]:
    width = max(len(name) for name in allocation.widths)
    lines = [f"{'group':<{width}}  teacher  student"]
    for name, kept in allocation.widths.items():
        lines.append(f"{name:<{width}}  {allocation.teacher_widths[name]:>7}  {kept:>7}")
    return lines


def _costs(allocation: Allocation) -> list[str]:
    lines = [
        f"{what:<7} {ours:>14,} of {theirs:>14,}  {ours / theirs:.1%}"
        for what, ours, theirs in (
            ("macs", allocation.macs, allocation.teacher_macs),
            ("params", allocation.params, allocation.teacher_params),
        )
    ]
    for what, fraction in allocation.predicted.items():
        lines.append(
            f"{what:<7} {fraction:.1%} predicted; a run builds the student and measures it"
        )
    if allocation.gap is not None:
        lines.append(
            f"loss    {allocation.allocator}: no widths within the limit of "
            f"{' and '.join(allocation.bounded_by)} have an expected loss that is lower by more "
            f"than {allocation.gap:.1%}"
        )
    return lines
