"""Choose the widths of the student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from torch import nn

from coa_compress.allocation.allocate import make_allocation
from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.space import width_space
from coa_compress.artifacts import Allocation, Budget, ChannelGroup, Cut, Scores
from coa_compress.checkpoint import load_tensors, save_tensors
from coa_compress.refit.closed_form import refit
from coa_compress.rounds import RoundSteps, allocate_in_rounds
from coa_compress.scoring.catalog import SCORERS
from coa_compress.settings import Fraction, PositiveInt, check_ranges
from coa_compress.stages.files import read_json, write_json
from coa_compress.stages.score import calibration_loss
from coa_compress.stages.state import Context, State, needed

Groups: TypeAlias = Sequence[ChannelGroup]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateSettings:
    """What the student may cost.

    Args:
        allocator: Name of an allocator, see ``coa-compress list allocators``.
        keep_macs: Fraction of the teacher's MACs that the student may keep.
        keep_params: Fraction of the teacher's parameters that the student may keep.
        round_to: Widths are multiples of this, or the full width.
        min_channels: No group gets fewer channels than this.
        rounds: In how many rounds the budget is reached; each one cuts a part, refits the
            student, and scores its channels for the next.

    Raises:
        BudgetError: If neither limit is given.
        RegistryError: If there is no such allocator.
    """

    allocator: str = "greedy"
    keep_macs: Fraction | None = None
    keep_params: Fraction | None = None
    round_to: PositiveInt = 8
    min_channels: PositiveInt = 8
    rounds: PositiveInt = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        ALLOCATORS.get(self.allocator)
        self.budget()

    def budget(self) -> Budget:
        """Return the limits alone."""
        return Budget(
            keep_macs=self.keep_macs,
            keep_params=self.keep_params,
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
        """Raise a ``BudgetError`` if no choice of widths is within the budget."""
        structure = context.structure(state.teacher)
        width_space(structure.groups, structure.costs, self.settings.budget())

    def run(self, state: State, context: Context) -> State:
        """Return the state with an allocation."""
        structure = context.structure(state.teacher)
        scores = needed(state.scores, "scores", self.name, "score")
        budget = self.settings.budget()
        allocation = allocate_in_rounds(
            structure, scores, budget, self._steps(state, context), rounds=self.settings.rounds
        )
        return replace(state, allocation=allocation, budget=budget)

    def _steps(self, state: State, context: Context) -> RoundSteps:
        costs = context.structure(state.teacher).costs

        def allocate(groups: Groups, scores: Scores, budget: Budget) -> Allocation:
            return make_allocation(groups, scores, costs, budget, self.settings.allocator)

        def refitted(cut: Cut) -> nn.Module:
            cut = replace(cut, student=cut.student.to(context.device))
            return refit(state.teacher.to(context.device), cut, context.calibration()).student

        def score(model: nn.Module, groups: Groups) -> Scores:
            scorer = SCORERS.get(state.scorer)
            return scorer(model, groups, context.calibration(), calibration_loss)

        return RoundSteps(score=score, allocate=allocate, refit=refitted)

    def save(self, state: State, folder: Path) -> None:
        """Write which channels stay, and what that costs."""
        allocation = needed(state.allocation, "an allocation", self.name, self.name)
        save_tensors(folder / "kept.safetensors", allocation.kept)
        content = {
            "widths": allocation.widths,
            "teacher_widths": dict(allocation.teacher_widths),
            "macs": allocation.macs,
            "params": allocation.params,
            "teacher_macs": allocation.teacher_macs,
            "teacher_params": allocation.teacher_params,
        }
        write_json(folder / "allocation.json", content)

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the allocation of the files."""
        found = read_json(folder / "allocation.json")
        kept = load_tensors(folder / "kept.safetensors")
        allocation = Allocation(
            kept={name: kept[name] for name in found["widths"]},
            teacher_widths=found["teacher_widths"],
            macs=found["macs"],
            params=found["params"],
            teacher_macs=found["teacher_macs"],
            teacher_params=found["teacher_params"],
        )
        return replace(state, allocation=allocation, budget=self.settings.budget())
