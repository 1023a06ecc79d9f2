"""Checks that a student computes exactly what the kept channels of its teacher compute."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.copying import copied
from coa_compress.errors import StructureError
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import place_of
from coa_compress.structure.rebuild import named_tensors
from coa_compress.structure.reference import (
    Traced,
    double_precision,
    doubled_copy,
    in_double,
    limited_outputs,
    run_reference,
)
from coa_compress.structure.selection import Selection, selection_of_slices
from coa_compress.structure.torch_export import FAILURES, first_line
from coa_compress.structure.trials import TOLERANCE, outputs_of, relative_error


@dataclass(frozen=True, slots=True)
class Exactness:
    """How exact a student is.

    Args:
        error: Its largest error in double precision, relative to the largest output of its
            reference; ``inf`` when it does not run or an output has another shape.
        sizes: The shapes of the inputs that it was compared at.
    """

    error: float
    sizes: tuple[tuple[int, ...], ...]


def exactness(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> Exactness:
    """Return how exact a student is, at the example's size and at another one.

    In double precision, the student is compared with the teacher's graph at full size, in which
    reductions, softmax, norms and products over channels are limited to the kept ones. When no cut
    group is restricted, it is compared with the teacher itself with zeroed weights, too.

    The other size is one that the teacher accepts: three quarters of height and width, a half,
    three halves or twice as much, in multiples of 8; a batch of two where it accepts none. A
    restricted cut needs another export for it.

    Args:
        structure: The teacher's structure.
        cut: The cut that made the student.
        kept: The channels that were kept, by group name.
        example: An input of the size that was analyzed.
    """
    student, teacher = doubled_copy(cut.student), doubled_copy(structure.model)
    selection = structure.selection(kept)
    zeroed = None if _restricted(structure, kept) else _zeroed(structure, teacher, kept)
    example = in_double(example)
    with double_precision():
        reference = run_reference(teacher, selection, example)
        error = relative_error(reference.outputs, outputs_of(student, example))
        sizes = [tuple(example.shape)]
        if zeroed is not None:
            error = max(error, _error_to(zeroed, student, selection, example))
        for other in _other_sizes(example):
            expected = outputs_of(teacher, other)
            if expected is None or not all(bool(y.isfinite().all()) for y in expected):
                continue
            if zeroed is not None:
                error = max(error, _error_to(zeroed, student, selection, other))
            else:
                again = _reference_at(structure, teacher, cut, other)
                if again is None:
                    break
                error = max(error, relative_error(again.outputs, outputs_of(student, other)))
            sizes.append(tuple(other.shape))
            break
    return Exactness(error, tuple(sizes))


def exactness_error(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> float:
    """Return the error of ``exactness``: 0 for equal outputs, ``inf`` for other shapes."""
    return exactness(structure, cut, kept, example).error


def check_exact(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> Exactness:
    """Return how exact a student is; raise when it is not.

    Args:
        structure: The teacher's structure.
        cut: The cut that made the student.
        kept: The channels that were kept, by group name.
        example: An input of the size that was analyzed.

    Raises:
        StructureError: If its error is above 1e-9, naming the first module that differs.
    """
    found = exactness(structure, cut, kept, example)
    if found.error > TOLERANCE:
        where = first_difference(structure, cut, kept, example)
        message = f"the student is not what its teacher's kept channels compute: {where}, relative "
        message += f"error {found.error:.1e}: exclude the groups of that module from the cut"
        raise StructureError(message)
    return found


def first_difference(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> str:
    """Return a sentence that names the first module whose output is not as it should be."""
    student = doubled_copy(cut.student)
    teacher = doubled_copy(structure.model)
    selection = structure.selection(kept)
    with double_precision():
        reference = run_reference(teacher, selection, in_double(example), keep_values=True)
        seen, failure = _module_outputs(student, in_double(example))
    expected = _expected_outputs(structure, reference, kept)
    for path, value in seen:
        if path in expected and relative_error([expected[path]], [value]) > TOLERANCE:
            return f"module {path!r} is the first that differs"
    return failure or "no module alone differs, only what the network does with their outputs"


def zero_removed_(
    structure: ExportedStructure, model: nn.Module, kept: Mapping[str, Tensor]
) -> None:
    """Zero every parameter position of the removed channels of a network like the teacher."""
    tensors = named_tensors(model)
    with torch.no_grad():
        for group in structure.groups:
            if group.name not in kept:
                continue
            gone = torch.ones(group.n_channels, dtype=torch.bool)
            gone[kept[group.name].cpu()] = False
            for member in group.members:
                tensor = tensors[member.tensor]
                if isinstance(tensor, nn.Parameter):
                    where = member.positions[gone].flatten().to(tensor.device)
                    tensor.index_fill_(member.dim, where, 0.0)


def _restricted(structure: ExportedStructure, kept: Mapping[str, Tensor]) -> bool:
    return any(
        group.restricted and len(kept[group.name]) < group.n_channels
        for group in structure.groups
        if group.name in kept
    )


def _zeroed(
    structure: ExportedStructure, teacher: nn.Module, kept: Mapping[str, Tensor]
) -> nn.Module:
    zeroed = copied(teacher)
    zero_removed_(structure, zeroed, kept)
    return zeroed


def _error_to(
    zeroed: nn.Module, student: nn.Module, selection: Selection, example: Tensor
) -> float:
    expected = outputs_of(zeroed, example)
    if expected is None or not all(bool(y.isfinite().all()) for y in expected):
        return 0.0  # zeros may divide by zero in the teacher, which is no fault of the student
    limited = limited_outputs(selection, expected)
    return relative_error(limited, outputs_of(student, example))


def _reference_at(
    structure: ExportedStructure, teacher: nn.Module, cut: Cut, example: Tensor
) -> Traced | None:
    """Return the reference at another size; None when the teacher cannot be exported there."""
    try:
        labeled = structure.graphs.at(example)
    except StructureError:
        return None
    return run_reference(teacher, selection_of_slices(labeled, cut.slices), example)


def _other_sizes(example: Tensor) -> Iterator[Tensor]:
    """Yield random inputs of other sizes, the cheapest first, and last another batch."""
    generator = torch.Generator().manual_seed(0)
    image = example.dim() > 3 and example.is_floating_point()
    before = tuple(example.shape[-2:]) if image else ()
    seen = {before}
    for factor in (0.75, 0.5, 1.5, 2.0):
        sizes = tuple(max(8, int(size * factor) // 8 * 8) for size in before)
        if sizes not in seen:
            seen.add(sizes)
            shape = (*example.shape[: -len(sizes)], *sizes)
            yield torch.rand(shape, generator=generator, dtype=torch.float64).to(example)
    yield torch.cat([example, example.flip(-1)])


def _module_outputs(model: nn.Module, example: Tensor) -> tuple[list[tuple[str, Tensor]], str]:
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for path, module in model.named_modules():

        def keep(_module: nn.Module, _args: object, output: object, path: str = path) -> None:
            if isinstance(output, Tensor):
                seen.append((path, output.clone()))

        handles.append(module.register_forward_hook(keep))
    try:
        model(example.clone())
    except FAILURES as error:
        last = seen[-1][0] if seen else ""
        return seen, f"it fails after module {last!r} ({first_line(error)})"
    finally:
        for handle in handles:
            handle.remove()
    return seen, ""


def _expected_outputs(
    structure: ExportedStructure, reference: Traced, kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what leaf modules that make one call should return, limited to kept channels."""
    selection = structure.selection(kept)
    found: dict[str, list[Tensor]] = {}
    for node, value in reference.values.items():
        path = place_of(node).module
        if node.op != "call_function" or not path or not isinstance(value, Tensor):
            continue
        limited = value
        for dim, labels in enumerate(selection.labeled.dims(node)):
            if labels is not None:
                limited = limited.index_select(dim, selection.kept(labels))
        found.setdefault(path, []).append(limited)
    return {path: values[0] for path, values in found.items() if len(values) == 1}
