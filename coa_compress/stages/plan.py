"""The plan of a run as text: groups, widths and predicted cost, without training anything."""

from collections.abc import Sequence

from coa_compress.artifacts import Allocation
from coa_compress.errors import RecipeError
from coa_compress.stages.allocate import Allocate
from coa_compress.stages.distill import Distill
from coa_compress.stages.prune import Prune
from coa_compress.stages.score import Score
from coa_compress.stages.state import Context, Stage, State, needed


def plan_table(stages: Sequence[Stage], state: State, context: Context) -> str:
    """Return what each group would keep, and what the student would cost.

    With several rounds, each cuts what the one before has left, as if nothing were refitted or
    distilled in between: what it costs is within the budget in any case.

    Args:
        stages: All stages of the run; those up to the last allocation are run, except training.
        state: Where the run would start.
        context: What stages are given.

    Raises:
        RecipeError: If the recipe does not allocate.
    """
    planned: list[Allocation] = []
    rounds = sum(isinstance(stage, Allocate) for stage in stages)
    for stage in stages:
        if isinstance(stage, Allocate):
            state = stage.plan(state, context)
            planned.append(needed(state.allocation, "an allocation", stage.name, stage.name))
        elif isinstance(stage, Score) or (isinstance(stage, Prune) and len(planned) < rounds):
            state = stage.run(state, context)
    if not planned:
        message = "there is nothing to plan: add stages 'score' and 'allocate' to the recipe"
        raise RecipeError(message)
    lines = [*_widths(planned[-1]), "", *_costs(planned[-1]), *_rounds(planned, stages)]
    lines.append(f"stages  {' -> '.join(stage.name for stage in stages)}")
    return "\n".join(lines)


def _rounds(planned: Sequence[Allocation], stages: Sequence[Stage]) -> list[str]:
    if len(planned) == 1:
        return []
    macs = ", ".join(f"{one.macs / one.teacher_macs:.1%}" for one in planned)
    trained = ", ".join(
        f"{stage.settings.training.steps} steps by the "
        f"{'student before' if stage.settings.assistant else 'teacher'}"
        for stage in stages
        if isinstance(stage, Distill)
    )
    return [
        f"rounds  {len(planned)}: {macs} of the macs; from the second on, widths depend on what "
        f"the student has learned by then",
        f"taught  {trained}",
    ]


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
            f"loss    {allocation.allocator}, evenness {allocation.evenness:g}: no widths within "
            f"the limit of {' and '.join(allocation.bounded_by)} have an expected loss that is "
            f"lower by more than {allocation.gap:.1%}"
        )
    return lines
