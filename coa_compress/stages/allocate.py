"""Choose the widths of the student."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import nn

from coa_compress.allocation.allocate import (
    DEFAULT_ALLOCATOR,
    make_allocation,
    narrowest_allocation,
)
from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.closed_loop import LoopRules, allocate_measured
from coa_compress.allocation.space import width_space
from coa_compress.artifacts import (
    Allocation,
    Budget,
    ChannelGroup,
    Curves,
    Cut,
    MeasuredLimit,
    Scores,
)
from coa_compress.checkpoint import load_tensors, save_tensors
from coa_compress.copying import placed
from coa_compress.costs import CostModel
from coa_compress.errors import SettingError
from coa_compress.refit.closed_form import refit
from coa_compress.rounds import RoundSteps, allocate_further, allocate_in_rounds
from coa_compress.scoring.catalog import SCORERS
from coa_compress.settings import Fraction, PositiveFloat, PositiveInt, UnitInterval, check_ranges
from coa_compress.stages.files import read_json, write_json
from coa_compress.stages.limits import Place, limited_costs, measurer
from coa_compress.stages.score import squared_error
from coa_compress.stages.state import Context, State, groups_so_far, needed

Groups: TypeAlias = Sequence[ChannelGroup]

_MARGINS = {"latency": 0.02, "memory": 0.0}
"""Part of a measured limit that stays free; peak memory is the same every time, on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateSettings:
    """What the student may cost; at least one limit must be given, and all that are given hold.

    Latency and memory are those of the device of the run and of the example input. They are
    predicted first; then students are built and measured until one is within the limits.

    Args:
        allocator: Name of an allocator, see ``coa-compress list allocators``.
        keep_macs: Fraction of the teacher's MACs that the student may keep.
        keep_params: Fraction of the teacher's parameters that the student may keep.
        keep_latency: Fraction of the teacher's time for one pass that the student may take.
        max_latency_ms: Most milliseconds that the student may take for one pass.
        keep_memory: Fraction of the teacher's peak memory that the student may take.
        max_memory_mb: Most megabytes of 10**6 bytes that the student may take at the peak.
        round_to: Widths are multiples of this, or the full width.
        min_channels: No group gets fewer channels than this.
        latency_table: File that ``coa-compress profile --table`` wrote; None builds the table.
        latency_rounds: Timed passes of each student and the teacher, in turns.
        students: Most students that are built and measured.
        evenness: How far the differences between what groups lose are taken back before widths are
            chosen, from 0, by the scores or curves as they are, to 1, all groups lose alike; see
            ``allocation.losses.evened``.
        rounds: In how many rounds the budget is reached; each one cuts a part, refits the
            student, and scores its channels for the next.

    Raises:
        BudgetError: If no limit is given.
        RegistryError: If there is no such allocator.
    """

    allocator: str = DEFAULT_ALLOCATOR
    keep_macs: Fraction | None = None
    keep_params: Fraction | None = None
    keep_latency: Fraction | None = None
    max_latency_ms: PositiveFloat | None = None
    keep_memory: Fraction | None = None
    max_memory_mb: PositiveFloat | None = None
    round_to: PositiveInt = 8
    min_channels: PositiveInt = 8
    latency_table: str | None = None
    latency_rounds: PositiveInt = 15
    students: PositiveInt = 8
    evenness: UnitInterval = 0.0
    rounds: PositiveInt = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        budget = self.budget()
        if self.rounds > 1 and (budget.limits_latency or budget.limits_memory):
            message = (
                f"AllocateSettings.rounds is {self.rounds}, but latency and memory are limited "
            )
            message += "in one round: use keep_macs or keep_params, or rounds: 1"
            raise SettingError(message)
        ALLOCATORS.get(self.allocator)

    def budget(self) -> Budget:
        """Return the limits alone."""
        return Budget(
            keep_macs=self.keep_macs,
            keep_params=self.keep_params,
            keep_latency=self.keep_latency,
            max_latency_ms=self.max_latency_ms,
            keep_memory=self.keep_memory,
            max_memory_mb=self.max_memory_mb,
            round_to=self.round_to,
            min_channels=self.min_channels,
        )


class Allocate:
    """From scores and a budget to the channels that stay."""

    name = "allocate"
    Settings = AllocateSettings
    needs: tuple[str, ...] = ("score",)

    def __init__(self, settings: AllocateSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise a ``BudgetError`` if no choice of widths has so few MACs and parameters."""
        budget = self.settings.budget()
        structure = context.structure(state.teacher)
        if budget.keep_macs is not None or budget.keep_params is not None:
            width_space(structure.groups, structure.costs, _counted(budget))

    def run(self, state: State, context: Context) -> State:
        """Return the state with an allocation; latency and memory are measured where limited."""
        return self._allocated(state, context, measure=True)

    def plan(self, state: State, context: Context) -> State:
        """Return the state with an allocation by predictions alone."""
        return self._allocated(state, context, measure=False)

    def _allocated(self, state: State, context: Context, *, measure: bool) -> State:
        structure = context.structure(state.teacher)
        scores = needed(state.scores, "scores", self.name, "score")
        budget, settings, curves = self.settings.budget(), self.settings, state.curves
        device = context.device
        place = Place(structure, placed(state.teacher, device), context.example.to(device))
        table = None if settings.latency_table is None else Path(settings.latency_table)
        costs = limited_costs(place, budget, table, context.progress)

        def choose(within: Budget) -> Allocation:
            steps = self._steps(state, context, costs)
            if state.allocation is None:
                return allocate_in_rounds(structure, scores, within, steps, rounds=settings.rounds)
            left = groups_so_far(state, structure.groups)
            further = partial(steps.allocate, left, scores)
            return allocate_further(structure, state.allocation, within, further)

        if measure and (budget.limits_latency or budget.limits_memory):
            narrowest = narrowest_allocation(
                structure.groups, scores, costs, budget, curves=curves, evenness=settings.evenness
            )
            limited = {"latency": budget.limits_latency, "memory": budget.limits_memory}
            rules = LoopRules(
                students=settings.students,
                margins={
                    name: _MARGINS[name] for name, is_limited in limited.items() if is_limited
                },
            )
            measured = measurer(place, budget, costs, settings.latency_rounds)
            allocation = allocate_measured(budget, choose, narrowest, measured, rules)
        else:
            allocation = choose(budget)
        return replace(state, allocation=allocation, budget=budget)

    def _steps(self, state: State, context: Context, costs: CostModel) -> RoundSteps:
        # curves are of the whole teacher: they say nothing about what earlier rounds have left
        curves: Curves | None = state.curves if self.settings.rounds == 1 else None

        def allocate(groups: Groups, scores: Scores, budget: Budget) -> Allocation:
            name, evenness = self.settings.allocator, self.settings.evenness
            return make_allocation(
                groups, scores, costs, budget, name, curves=curves, evenness=evenness
            )

        def refitted(cut: Cut) -> nn.Module:
            cut = replace(cut, student=placed(cut.student, context.device))
            return refit(placed(state.teacher, context.device), cut, context.calibration()).student

        def score(model: nn.Module, groups: Groups) -> Scores:
            scorer = SCORERS.get(state.scorer)
            return scorer(model, groups, context.calibration(), squared_error)

        return RoundSteps(score=score, allocate=allocate, refit=refitted)

    def save(self, state: State, folder: Path) -> None:
        """Write which channels stay, and what that costs."""
        allocation = needed(state.allocation, "an allocation", self.name, self.name)
        save_tensors(folder / "kept.safetensors", allocation.kept)
        content = {
            "widths": allocation.widths,
            "teacher_widths": dict(allocation.teacher_widths),
            **{name: getattr(allocation, name) for name in _PLAIN},
            "bounded_by": list(allocation.bounded_by),
            "predicted": dict(allocation.predicted),
            "measured": {name: asdict(one) for name, one in allocation.measured.items()},
        }
        write_json(folder / "allocation.json", content)

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the allocation of the files."""
        found = read_json(folder / "allocation.json")
        kept = load_tensors(folder / "kept.safetensors")
        allocation = Allocation(
            kept={name: kept[name] for name in found["widths"]},
            teacher_widths=found["teacher_widths"],
            **{name: found[name] for name in _PLAIN},
            bounded_by=tuple(found["bounded_by"]),
            predicted=found["predicted"],
            measured={name: MeasuredLimit(**one) for name, one in found["measured"].items()},
        )
        return replace(state, allocation=allocation, budget=self.settings.budget())


_PLAIN = (
    *("macs", "params", "teacher_macs", "teacher_params"),
    *("allocator", "loss", "least_loss", "evenness"),
)
"""Fields of an allocation that JSON holds as they are."""


def _counted(budget: Budget) -> Budget:
    """Return the limits that are exact without any measurement."""
    return replace(
        budget, keep_latency=None, max_latency_ms=None, keep_memory=None, max_memory_mb=None
    )
