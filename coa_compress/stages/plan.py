"""The plan of a run as text: groups, widths and predicted cost, without training anything."""

from collections.abc import Sequence

from coa_compress.errors import RecipeError
from coa_compress.stages.state import Context, Stage, State

_PLANNED = ("score", "allocate")


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
        if stage.name in _PLANNED:
            state = stage.run(state, context)
    allocation = state.allocation
    if allocation is None:
        message = "there is nothing to plan: add stages 'score' and 'allocate' to the recipe"
        raise RecipeError(message)
    width = max(len(name) for name in allocation.widths)
    lines = [f"{'group':<{width}}  teacher  student"]
    for name, kept in allocation.widths.items():
        lines.append(f"{name:<{width}}  {allocation.teacher_widths[name]:>7}  {kept:>7}")
    lines.append("")
    for what, ours, theirs in (
        ("macs", allocation.macs, allocation.teacher_macs),
        ("params", allocation.params, allocation.teacher_params),
    ):
        lines.append(f"{what:<7} {ours:>14,} of {theirs:>14,}  {ours / theirs:.1%}")
    lines.append(f"stages  {' -> '.join(stage.name for stage in stages)}")
    return "\n".join(lines)
