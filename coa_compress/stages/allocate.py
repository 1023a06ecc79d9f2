"""Choose the widths of the student."""

from dataclasses import dataclass, replace
from pathlib import Path

from coa_compress.allocation.allocate import make_allocation
from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.space import width_space
from coa_compress.artifacts import Allocation, Budget
from coa_compress.checkpoint import load_tensors, save_tensors
from coa_compress.settings import Fraction, PositiveInt, check_ranges
from coa_compress.stages.files import read_json, write_json
from coa_compress.stages.state import Context, State, needed


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateSettings:
    """What the student may cost.

    Args:
        allocator: Name of an allocator, see ``coa-compress list allocators``.
        keep_macs: Fraction of the teacher's MACs that the student may keep.
        keep_params: Fraction of the teacher's parameters that the student may keep.
        round_to: Widths are multiples of this, or the full width.
        min_channels: No group gets fewer channels than this.

    Raises:
        BudgetError: If neither limit is given.
        RegistryError: If there is no such allocator.
    """

    allocator: str = "greedy"
    keep_macs: Fraction | None = None
    keep_params: Fraction | None = None
    round_to: PositiveInt = 8
    min_channels: PositiveInt = 8

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
        allocation = make_allocation(
            structure.groups, scores, structure.costs, budget, self.settings.allocator
        )
        return replace(state, allocation=allocation, budget=budget)

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
