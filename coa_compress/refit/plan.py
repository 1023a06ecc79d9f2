"""Which layers of a student can be refitted, and in which order."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.refit.operators import Convolution, Operator, Pointwise, Scale, Statistics
from coa_compress.refit.places import Computed, Place, computed_places
from coa_compress.refit.tracing import COMPUTED, Run, RunId, trace
from coa_compress.structure.rebuild import named_tensors

_NEVER_READ = "no convolution, linear layer, product or normalization was seen to use it"
_OTHERWISE_USED = "it is not used as often, or on the same sizes, as in the teacher"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A weight to refit, with everything that it does in a forward pass.

    Args:
        path: Name for people: the module, or the parameter.
        operator: What its first call does with it.
        place: Where it is kept.
        shape: Of the weight in the student.
        runs: Its calls in the order of execution, by name; for each, which of ``biases`` it
            adds, -1 for none that may change.
        biases: Where its biases are kept.
        kept: Output channels of the teacher that the student has, or None for all.
        system: Groups of channels, and features of each.
    """

    path: str
    operator: Operator
    place: Place
    shape: torch.Size
    runs: Mapping[RunId, int]
    biases: tuple[Place, ...]
    kept: Tensor | None
    system: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The layers to refit.

    Args:
        layers: In the order of execution.
        skipped: Why a layer that was cut is left as it is, by path.
    """

    layers: tuple[Layer, ...]
    skipped: Mapping[str, str]


def plan_layers(teacher: nn.Module, student: nn.Module, cut: Cut, example: Tensor) -> Plan:
    """Return what to refit; teacher and student are each run once.

    Args:
        teacher: The network before the cut, in evaluation mode.
        student: The network after it, in evaluation mode.
        cut: What was cut.
        example: Input of both.
    """
    in_teacher, in_student = _by_key(trace(teacher, example)), _by_key(trace(student, example))
    computed: dict[str, Computed] = {}
    if any(key.startswith(COMPUTED) for key in in_student):
        computed = computed_places(student, example)
    taken = _bias_owners(in_student)
    layers, skipped, read = [], dict[str, str](), set[str]()
    for key, runs in in_student.items():
        sources = computed[key].sources if key in computed else (key,)
        read.update(sources)
        place = _weight_place(key, computed)
        if not _is_cut(place, sources, runs[0], cut.slices):
            continue
        path = _path(place.name if isinstance(place, Place) else next(iter(sources), key))
        reason = place if isinstance(place, str) else _objection(in_teacher.get(key, []), runs)
        if reason is None and isinstance(place, Place):
            layer = _layer(place, in_teacher[key], runs, cut.slices)
            if _matches(layer.kept, in_teacher[key][0], runs[0]):
                layers.append(_with_biases(layer, runs, computed.get(key), taken))
                continue
            reason = "its outputs cannot be told apart among those of the teacher"
        skipped[path] = str(reason)
    skipped.update(_unread(student, cut.slices, read))
    return Plan(tuple(layers), skipped)


def _by_key(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.key, []).append(run)
    return found


def _weight_place(key: str, computed: Mapping[str, Computed]) -> Place | str:
    if not key.startswith(COMPUTED):
        return Place(key)
    if key in computed:
        return computed[key].weight
    return "its weight is computed, and gradients cannot be asked for"


Slices = Mapping[str, Mapping[int, Tensor]]


def _is_cut(place: Place | str, sources: Sequence[str], run: Run, slices: Slices) -> bool:
    """Return whether a layer lost inputs; normalizations always follow what is before them."""
    if isinstance(run.operator, Scale | Statistics):
        return True
    if isinstance(place, str) or place.owner is not None:
        return any(name in slices for name in sources)
    return run.operator.input_dim(run.shape) in slices.get(place.name, {})


def _objection(in_teacher: Sequence[Run], in_student: Sequence[Run]) -> str | None:
    if not in_teacher:
        return "it does not run in both networks"
    if [run.size for run in in_teacher] != [run.size for run in in_student]:
        return _OTHERWISE_USED
    if len({type(run.operator) for run in (*in_teacher, *in_student)}) > 1:
        return "its weight is used in several ways"
    return None


def _layer(place: Place, in_teacher: Sequence[Run], runs: Sequence[Run], slices: Slices) -> Layer:
    first = in_teacher[0]
    own = slices.get(place.name, {})
    kept = first.operator.kept_outputs(own, first.shape)
    run = runs[0]
    return Layer(_path(place.name), run.operator, place, run.shape, {}, (), kept, _system(run))


def _matches(kept: Tensor | None, in_teacher: Run, in_student: Run) -> bool:
    count = in_teacher.n_channels if kept is None else len(kept)
    return count == in_student.n_channels


def _with_biases(
    layer: Layer,
    runs: Sequence[Run],
    computed: Computed | None,
    owners: Mapping[str, set[str]],
) -> Layer:
    """Return the layer with the biases that are its own."""
    biases: list[Place] = []
    numbered = {}
    for run in runs:
        place = None if computed is None else computed.bias
        if run.bias and len(owners[run.bias]) == 1:
            place = Place(run.bias)
        if place is not None and place not in biases:
            biases.append(place)
        numbered[run.key, run.number] = -1 if place is None else biases.index(place)
    return replace(layer, runs=numbered, biases=tuple(biases))


def _system(run: Run) -> tuple[int, int]:
    operator, shape = run.operator, run.shape
    if isinstance(operator, Convolution):
        total = math.prod(shape)
        return operator.groups, total // run.n_channels
    if isinstance(operator, Pointwise):
        return 1, shape[operator.reads]
    return shape[0], 1


def _bias_owners(runs: Mapping[str, Sequence[Run]]) -> dict[str, set[str]]:
    owners: dict[str, set[str]] = {}
    for key, calls in runs.items():
        for run in calls:
            if run.bias:
                owners.setdefault(run.bias, set()).add(key)
    return owners


def _unread(student: nn.Module, slices: Slices, read: set[str]) -> dict[str, str]:
    tensors = named_tensors(student)
    known = {id(tensors[name]) for name in read if name in tensors}
    return {
        _path(name): _NEVER_READ
        for name in slices
        if name in tensors and tensors[name].dim() > 1 and id(tensors[name]) not in known
    }


def _path(name: str) -> str:
    name = name.partition(".parametrizations.")[0]
    for ending in (".weight", ".running_mean"):
        name = name.removesuffix(ending)
    return name
