"""Trial cuts: which of the groups of a structure the code of the network can really follow."""

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coa_compress.copying import copied
from coa_compress.errors import StructureError
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import evaluation_copy, output_nodes
from coa_compress.structure.rebuild import named_tensors, replace_tensors_
from coa_compress.structure.reference import (
    double_precision,
    doubled_copy,
    in_double,
    run_reference,
)
from coa_compress.structure.selection import Selection
from coa_compress.structure.torch_export import FAILURES, first_line

TOLERANCE = 1e-9
"""Largest relative error in double precision of a cut that counts as exact."""

_LOG = logging.getLogger(__name__)


def outputs_of(model: nn.Module, example: Tensor) -> tuple[Tensor, ...] | None:
    """Return every tensor that a network returns; None when it does not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            leaves = pytree.tree_leaves(model(example.clone()))
    except FAILURES as error:
        _LOG.debug("%s does not run: %s", type(model).__name__, first_line(error))
        return None
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor] | None) -> float:
    """Return the largest difference, relative to the largest expected value.

    Args:
        expected: What is right.
        actual: What is to be judged; None counts as infinitely wrong, as do other shapes.

    >>> relative_error([torch.tensor([2.0, 4.0])], [torch.tensor([2.0, 3.0])])
    0.25
    """
    if actual is None or len(actual) != len(expected):
        return float("inf")
    worst = 0.0
    for wanted, got in zip(expected, actual, strict=True):
        if wanted.shape != got.shape:
            return float("inf")
        if wanted.numel():
            scale = float(wanted.abs().max()) or 1.0
            difference = float((wanted - got).abs().max()) / scale
            worst = max(worst, difference) if difference == difference else float("inf")
    return worst


def inexact_groups(structure: ExportedStructure, example: Tensor) -> list[str]:
    """Return the names of the groups that the code of the network cannot follow.

    Args:
        structure: A structure whose graph is right.
        example: An input of the size that was analyzed.

    Raises:
        StructureError: If the uncut network does not do in double precision what its graph does.
    """
    names = [group.name for group in structure.groups]
    probe = structure.with_model(stirred(structure.model))
    bad = _culprits(probe, names, example)
    if len(bad) == len(names) and not _exact(probe, [], example):
        message = f"{type(structure.model).__name__} does not compute in double precision what its "
        message += "exported graph does, so that no cut can be checked: remove random numbers, "
        message += "state, fixed data types and layers in plain lists from it"
        raise StructureError(message)
    left = [name for name in names if name not in bad]
    if bad and not _sound(probe, left, example):
        left = _together(probe, left, example)
    return [name for name in names if name not in left]


def stirred(model: nn.Module) -> nn.Module:
    """Return a copy whose constant parameters and statistics vary, so that no channel is idle."""
    changed = copied(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in {id(t): t for t in named_tensors(changed).values()}.values():
            if not tensor.is_floating_point() or tensor.numel() < 2 or tensor.min() < tensor.max():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.add_((noise * 0.5 + 0.1).to(tensor))
    return changed


def _culprits(structure: ExportedStructure, names: Sequence[str], example: Tensor) -> list[str]:
    """Return the groups that are not sound alone or in a part of these, by bisection."""
    if _sound(structure, names, example):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    first = _culprits(structure, names[:half], example)
    return first + _culprits(structure, names[half:], example)


def _together(structure: ExportedStructure, names: Sequence[str], example: Tensor) -> list[str]:
    """Return groups that are sound together, dropping those that spoil it."""
    good: list[str] = []
    for name in names:
        if _sound(structure, [*good, name], example):
            good.append(name)
    return good


def _sound(structure: ExportedStructure, names: Sequence[str], example: Tensor) -> bool:
    return not names or (
        _exact(structure, names, example) and _fits_any_widths(structure, names, example)
    )


def _exact(structure: ExportedStructure, names: Sequence[str], example: Tensor) -> bool:
    """Tell whether about half of each group at random can be cut exactly."""
    generator = torch.Generator().manual_seed(len(names))
    sizes = structure.widths
    kept: dict[str, Tensor] = {}
    for name in names:
        order = torch.randperm(sizes[name], generator=generator)
        count = max(1, sizes[name] // 2 - 1 + int(order[0]) % 2)
        kept[name] = order[:count]
    student = doubled_copy(structure.cut(kept).student)
    teacher = doubled_copy(structure.model)
    with double_precision():
        reference = run_reference(teacher, structure.selection(kept), in_double(example))
        actual = outputs_of(student, in_double(example))
    return relative_error(reference.outputs, actual) <= TOLERANCE


def _fits_any_widths(structure: ExportedStructure, names: Sequence[str], example: Tensor) -> bool:
    """Tell whether the shapes fit when the widths of any two groups differ in some trial.

    Nothing is computed where the network runs on the meta device.
    """
    network = evaluation_copy(structure.model)
    # unlike Module.to, this keeps a tensor with two names one tensor
    replace_tensors_(network, {n: t.to("meta") for n, t in named_tensors(network).items()})
    if _shapes_of(network, example) is None:
        network = structure.model
    moved = structure.with_model(network)
    for bit in range(max(1, (len(names) - 1).bit_length())):
        kept = {
            name: torch.arange(_trial_width(structure.widths[name], wide=bool(number >> bit & 1)))
            for number, name in enumerate(names)
        }
        expected = output_shapes(structure.selection(kept))
        if _shapes_of(moved.cut(kept).student, example) != expected:
            return False
    return True


def output_shapes(selection: Selection) -> list[tuple[int, ...]]:
    """Return the shape of every tensor that a cut network returns."""
    (last,) = (node for node in selection.labeled.graph.nodes if node.op == "output")
    return [tuple(selection.sizes(node)) for node in output_nodes(last)]


def _trial_width(size: int, *, wide: bool) -> int:
    """Return a third or two thirds of a width, at least 1 and at least 1 more."""
    narrow = max(1, size // 3)
    return max(narrow + 1, 2 * size // 3) if wide else narrow


def _shapes_of(model: nn.Module, example: Tensor) -> list[tuple[int, ...]] | None:
    parameter = next(model.parameters(), example)
    with torch.no_grad():
        outputs = outputs_of(model.eval(), example.to(parameter.device))
    return None if outputs is None else [tuple(output.shape) for output in outputs]
