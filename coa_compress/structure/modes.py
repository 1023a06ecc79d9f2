"""The choice between students of the network's own class and students that run its graph."""

import warnings
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.trials import inexact_groups

Mode = Literal["auto", "module", "graph"]
"""How students run: in the network's own class, as its exported graph, or whichever is better."""

_SMALL_ENOUGH = 1 / 8
"""What can get this small, as a fraction of MACs and of parameters, stays in its own class."""
_WORTH_IT = 1 / 2
"""A graph must be able to get smaller by this factor to take the place of the own class."""


def check_mode(mode: str) -> None:
    """Make sure that a mode is one.

    Raises:
        StructureError: If it is not.
    """
    if mode not in get_args(Mode):
        message = f"mode must be {', '.join(get_args(Mode))}, got {mode!r}"
        raise StructureError(message)


def choose_mode(
    by_code: ExportedStructure, rewritten: Callable[[], ExportedStructure], example: Tensor
) -> ExportedStructure:
    """Return the structure in module mode, or in graph mode if only that can get small.

    A student in module mode is of the user's own class, takes any input size at once and trains
    like it; that is worth some channels. So graph mode is taken only where code fixes so many
    sizes that module mode cannot reach an eighth of the MACs and the parameters, and where it at
    least halves what can be reached.

    Args:
        by_code: What may be cut as far as the code can follow; not tried yet.
        rewritten: Returns what may be cut when the graph is rewritten, not tried yet.
        example: An input of the size that was analyzed.

    Raises:
        StructureError: If there is nothing to cut in either.

    Warns:
        NoEffectWarning: If groups were frozen, naming them.
    """
    own = _without_inexact(by_code, example)
    if own.found and least(own) <= _SMALL_ENOUGH:
        return _warned(own)
    by_graph = rewritten()
    worth_it = _WORTH_IT * least(own) if own.found else 1.0
    if least(by_graph) > worth_it:
        return _warned(own)
    graph = _without_inexact(by_graph, example)
    return _warned(graph if least(graph) <= worth_it else own)


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
    return _warned(_without_inexact(structure, example))


def least(structure: ExportedStructure) -> float:
    """Return how small a network can get: one channel a group, the larger of both fractions."""
    full = structure.widths
    one = dict.fromkeys(full, 1)
    costs = (structure.costs.macs, structure.costs.params)
    return max(cost(one) / max(1, cost(full)) for cost in costs)


def _without_inexact(structure: ExportedStructure, example: Tensor) -> ExportedStructure:
    bad = inexact_groups(structure, example) if structure.found else []
    return structure.without(bad) if bad else structure


def _warned(structure: ExportedStructure) -> ExportedStructure:
    listed = ", ".join(structure.frozen)
    name = type(structure.model).__name__
    if not structure.found:
        message = f"no channel group of {name} can be cut exactly: "
        message += f"the code fixes the widths of {listed}"
        raise StructureError(message)
    if listed:
        warnings.warn(frozen_note(structure), NoEffectWarning, stacklevel=3)
    return structure


def frozen_note(structure: ExportedStructure) -> str:
    """Return which groups were frozen and why, as a sentence; empty if none was."""
    if not structure.frozen:
        return ""
    return f"frozen, as the code of the network fixes their widths: {', '.join(structure.frozen)}"
