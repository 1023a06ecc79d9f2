"""Checks that a student computes exactly what the kept channels of its teacher compute."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import FAILURES, first_line, place_of
from coa_compress.structure.rebuild import named_tensors
from coa_compress.structure.reference import Traced, double_precision, doubled_copy, run_reference
from coa_compress.structure.trials import TOLERANCE, inexact_groups, outputs_of, relative_error


def exactness_error(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> float:
    """Return the largest error of a student, relative to the largest output of its reference.

    In double precision, the student is compared with the teacher's graph at full size, in which
    reductions, softmax, norms and products over channels are limited to the kept ones. When no cut
    group is restricted, it is also compared with the teacher itself with zeroed weights, at
    the example's size and at another one that both accept.

    Args:
        structure: The teacher's structure.
        cut: The cut that made the student.
        kept: The channels that were kept, by group name.
        example: An input of the size that was analyzed.

    Returns:
        0 for equal outputs; ``inf`` when the student does not run or an output has another shape.
    """
    student = doubled_copy(cut.student)
    teacher = doubled_copy(structure.model)
    with double_precision():
        reference = run_reference(teacher, structure.selection(kept), example.double())
        error = relative_error(reference.outputs, outputs_of(student, example.double()))
        if _restricted(structure, kept):
            return error
        zero_removed_(structure, teacher, kept)
        for size in (example.double(), _other_size(example.double())):
            expected = outputs_of(teacher, size)
            if expected is None or not all(bool(y.isfinite().all()) for y in expected):
                continue
            error = max(error, relative_error(expected, outputs_of(student, size)))
    return error


def check_exact(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> None:
    """Make sure that a student is exact.

    Args:
        structure: The teacher's structure.
        cut: The cut that made the student.
        kept: The channels that were kept, by group name.
        example: An input of the size that was analyzed.

    Raises:
        StructureError: If its error is above 1e-9, naming the first module that differs.
    """
    error = exactness_error(structure, cut, kept, example)
    if error > TOLERANCE:
        where = first_difference(structure, cut, kept, example)
        message = f"the student is not what its teacher's kept channels compute: {where}, "
        message += f"relative error {error:.1e}: exclude the groups of that module from the cut"
        raise StructureError(message)


def first_difference(
    structure: ExportedStructure, cut: Cut, kept: Mapping[str, Tensor], example: Tensor
) -> str:
    """Return a sentence that names the first module whose output is not as it should be."""
    student = doubled_copy(cut.student)
    teacher = doubled_copy(structure.model)
    selection = structure.selection(kept)
    with double_precision():
        reference = run_reference(teacher, selection, example.double())
        seen, failure = _module_outputs(student, example.double())
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


def freeze_inexact(structure: ExportedStructure, example: Tensor) -> ExportedStructure:
    """Return the structure without the groups that cannot be cut exactly.

    Code that hard-codes a size (``x[:, :8]``) does not follow a cut. All groups are cut together
    once, at random, and compared with the reference; and they are cut to widths of which any two
    groups differ in some trial, on the meta device, to see that the shapes fit. Only when that
    fails are the groups at fault searched for.

    Args:
        structure: A structure whose graph is right.
        example: An input of the size that was analyzed.

    Raises:
        StructureError: If no group is left.

    Warns:
        NoEffectWarning: If groups were frozen, naming them.
    """
    bad = inexact_groups(structure, example)
    if not bad:
        return structure
    left = [group.name for group in structure.groups if group.name not in bad]
    listed = ", ".join(bad)
    if not left:
        message = f"no channel group of {type(structure.model).__name__} can be cut exactly: "
        message += f"the code fixes the widths of {listed}"
        raise StructureError(message)
    message = f"frozen, as the code of the network fixes their widths: {listed}"
    warnings.warn(message, NoEffectWarning, stacklevel=2)
    return structure.restricted_to(left)


def _restricted(structure: ExportedStructure, kept: Mapping[str, Tensor]) -> bool:
    return any(
        group.restricted and len(kept[group.name]) < group.n_channels
        for group in structure.groups
        if group.name in kept
    )


def _other_size(example: Tensor) -> Tensor:
    """Return an input of another height and width, multiples of 8; the same when too small."""
    if example.dim() != 4 or min(example.shape[-2:]) < 16:
        return example
    height, width = (max(8, int(size) * 3 // 4 // 8 * 8) for size in example.shape[-2:])
    return example[..., :height, :width].contiguous()


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
