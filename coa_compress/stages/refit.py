"""Refit the student's layers in closed form."""

from dataclasses import dataclass, replace
from pathlib import Path

from coa_compress.copying import placed
from coa_compress.refit.closed_form import refit
from coa_compress.settings import NonNegativeFloat, PositiveFloat, PositiveInt, check_ranges
from coa_compress.stages.files import load_network, read_json, save_network, write_json
from coa_compress.stages.state import Context, State, cut_of_round, needed


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitSettings:
    """How layers are refitted.

    Args:
        ridge: Strength of the pull to the present weights, relative to the features.
        positions: Positions that are sampled of each layer's output.
        max_memory_mb: Most memory for the rows and matrices of one layer, in MiB; where
            features are many, positions are fewer.
        max_activations_mb: Most memory for the activations of the student on all calibration images
            at once, in MB; where they need more, it runs anew for each layer, which takes
            several times as long.
    """

    ridge: NonNegativeFloat = 1e-4
    positions: PositiveInt = 16384
    max_memory_mb: PositiveFloat = 1024.0
    max_activations_mb: PositiveFloat = 4096.0

    def __post_init__(self) -> None:
        check_ranges(self)


class Refit:
    """From a freshly cut student to one whose features match those before the cut; no training."""

    name = "refit"
    Settings = RefitSettings
    needs: tuple[str, ...] = ("prune",)

    def __init__(self, settings: RefitSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Do nothing: whatever comes before decides."""

    def run(self, state: State, context: Context) -> State:
        """Return the state with a refitted student."""
        uncut, cut = cut_of_round(state, self.name)
        cut = replace(cut, student=placed(cut.student, context.device))
        result = refit(
            placed(uncut, context.device),
            cut,
            context.calibration(),
            ridge=self.settings.ridge,
            positions=self.settings.positions,
            max_memory_mb=self.settings.max_memory_mb,
            max_activations_mb=self.settings.max_activations_mb,
            progress=context.progress,
        )
        accepted = sum(layer.accepted for layer in result.layers)
        note = f"{self.name}: {accepted} of {len(result.layers)} layers were improved"
        if result.skipped:
            reasons = [f"{path}: {reason}" for path, reason in result.skipped.items()]
            note += f", {len(reasons)} left alone ({'; '.join(reasons[:3])})"
        return replace(state, student=result.student, notes=(*state.notes, note))

    def save(self, state: State, folder: Path) -> None:
        """Write the student."""
        student = needed(state.student, "a student", self.name, self.name)
        save_network(folder / "student.safetensors", student)
        write_json(folder / "notes.json", {"notes": list(state.notes)})

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the student of the file."""
        like = needed(state.student, "a student", self.name, "prune")
        student = load_network(folder / "student.safetensors", like)
        notes = tuple(read_json(folder / "notes.json")["notes"])
        return replace(state, student=student, notes=notes)
