"""Cut the student out of the teacher."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coa_compress.artifacts import AttributePatch, Cut
from coa_compress.checkpoint import load_tensors, load_weights_, save_tensors
from coa_compress.copying import copied
from coa_compress.rounds import widened
from coa_compress.stages.files import read_json, save_network, write_json
from coa_compress.stages.state import Context, State, needed
from coa_compress.structure.exactness import Exactness, check_exact
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph_student import GraphsBySize, GraphStudent
from coa_compress.structure.modes import frozen_note
from coa_compress.students import apply_shapes_


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """There is nothing to choose: the allocation says it all."""


class Prune:
    """From the teacher and an allocation to a student; the teacher stays as it is.

    In a later round the student keeps what it has learned: its own weights are cut.
    """

    name = "prune"
    Settings = PruneSettings
    needs: tuple[str, ...] = ("allocate",)

    def __init__(self, settings: PruneSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Do nothing: whatever comes before decides."""

    def run(self, state: State, context: Context) -> State:
        """Return the state with a student."""
        allocation = needed(state.allocation, "an allocation", self.name, "allocate")
        structure, before = context.structure(state.teacher), _student_so_far(state)
        if before is not None:
            structure = structure.with_model(widened(structure.model, before))
        cut = structure.cut(allocation.kept)
        exact = check_exact(structure, cut, allocation.kept, context.example)
        fresh = [note for note in _notes(structure, cut, exact) if note not in state.notes]
        notes = (*state.notes, *fresh)
        return replace(state, cut=cut, student=cut.student, before=before, notes=notes)

    def save(self, state: State, folder: Path) -> None:
        """Write the student and how it was cut."""
        cut: Cut = needed(state.cut, "a cut", self.name, self.name)
        flat = {f"{n}|{dim}": kept for n, dims in cut.slices.items() for dim, kept in dims.items()}
        save_tensors(folder / "slices.safetensors", flat)
        save_network(folder / "student.safetensors", cut.student)
        tensors = cut.student.state_dict()
        content: dict[str, Any] = {
            "patches": [asdict(patch) for patch in cut.patches],
            "shapes": {n: list(tensors[n].shape) for n in cut.slices if n in tensors},
            "notes": list(state.notes),
            "outputs": None,
        }
        if isinstance(cut.student, GraphStudent):
            content["outputs"] = list(cut.student.outputs)
        write_json(folder / "cut.json", content)

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the student of the files."""
        found = read_json(folder / "cut.json")
        patches = tuple(
            AttributePatch(patch["module"], patch["attribute"], _value(patch["value"]))
            for patch in found["patches"]
        )
        slices: dict[str, dict[int, Tensor]] = {}
        for key, kept in load_tensors(folder / "slices.safetensors").items():
            name, _, dim = key.rpartition("|")
            slices.setdefault(name, {})[int(dim)] = kept
        student = copied(state.teacher)
        apply_shapes_(student, patches, found["shapes"])
        if found["outputs"] is not None:
            graphs = GraphsBySize(state.teacher, found["outputs"])
            student = GraphStudent(student, graphs, slices)
        load_weights_(student, folder / "student.safetensors")
        cut = Cut(student.eval(), slices, patches)
        state = replace(state, before=_student_so_far(state), notes=tuple(found["notes"]))
        return replace(state, cut=cut, student=cut.student)


def _student_so_far(state: State) -> Cut | None:
    """Return the student of the round before with what it has learned; None in the first."""
    if state.cut is None or state.student is None:
        return None
    return replace(state.cut, student=state.student)


def _notes(structure: ExportedStructure, cut: Cut, exact: Exactness) -> Iterator[str]:
    changed = [f"{patch.module or 'model'}.{patch.attribute}" for patch in _noted(cut)]
    if changed:
        yield f"attributes that follow a width: {', '.join(changed)}"
    if frozen := frozen_note(structure):
        yield frozen
    if structure.mode == "graph":
        yield GRAPH_NOTE
    sizes = " and ".join("x".join(map(str, size)) for size in exact.sizes)
    yield f"the cut is exact: relative error {exact.error:.0e} in double precision at {sizes}"


GRAPH_NOTE = (
    "graph mode: the code of the network fixes sizes, so the student runs its exported graph "
    "instead; it is exported again, which takes seconds, for each new input size"
)
"""What a student in graph mode means for whoever uses it."""


def _noted(cut: Cut) -> list[AttributePatch]:
    if isinstance(cut.student, GraphStudent):
        return []  # its code is not run
    modules = dict(cut.student.named_modules())
    return [p for p in cut.patches if not type(modules[p.module]).__module__.startswith("torch.nn")]


def _value(value: "int | list[int]") -> "int | tuple[int, ...]":
    return tuple(value) if isinstance(value, list) else value
