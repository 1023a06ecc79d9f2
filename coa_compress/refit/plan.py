"""Which layers of a student can be refitted, and in which order."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.refit.linear_maps import input_dim, is_linear_map, output_dim
from coa_compress.refit.sampling import channels_last, size_without_channels, visited
from coa_compress.refit.statistics import has_statistics

_IMAGE_LAYERS = (nn.Conv2d, nn.ConvTranspose2d)
_IMAGE_DIMS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The layers to refit.

    Args:
        paths: Layers in the order of execution.
        kept: Their output channels that the student has, or None for all, by path.
        skipped: Why a layer that was cut is left as it is, by path.
    """

    paths: tuple[str, ...]
    kept: Mapping[str, Tensor | None]
    skipped: Mapping[str, str]


def plan_layers(teacher: nn.Module, student: nn.Module, cut: Cut, example: Tensor) -> Plan:
    """Return what to refit; teacher and student are each run once.

    Args:
        teacher: The network before the cut, in evaluation mode.
        student: The network after it, in evaluation mode.
        cut: What was cut.
        example: Input of both.
    """
    skipped = dict(_unsupported(student, cut))
    candidates = [path for path in _candidates(student, cut) if path not in skipped]
    known = dict(teacher.named_modules())
    found = [path for path in candidates if path in known]
    in_teacher, in_student = _runs(teacher, found, example), _runs(student, found, example)
    runs: list[str] = []
    for path in dict.fromkeys([*in_student, *candidates]):
        reason = _objection(in_teacher.get(path, []), in_student.get(path, []))
        if reason:
            skipped[path] = reason
        else:
            runs.append(path)
    kept = {path: _kept_outputs(student.get_submodule(path), path, cut) for path in runs}
    return Plan(tuple(runs), kept, skipped)


def _candidates(student: nn.Module, cut: Cut) -> Iterator[str]:
    for path, module in student.named_modules():
        if has_statistics(module) or (
            is_linear_map(module) and input_dim(module) in cut.slices.get(f"{path}.weight", {})
        ):
            yield path


def _unsupported(student: nn.Module, cut: Cut) -> Iterator[tuple[str, str]]:
    owners = Counter(id(tensor) for _, tensor in student.named_parameters(remove_duplicate=False))
    for path, module in student.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or f"{path}.weight" not in cut.slices:
            continue
        if owners[id(weight)] > 1:
            yield path, "its weight is shared with another layer"
        elif weight.dim() > 1 and not is_linear_map(module):
            yield path, f"a {type(module).__name__} cannot be refitted"


Runs = dict[str, list[tuple[int, ...]]]
"""The output size of each run of each layer that ran, in order; () if its input is no batch."""


def _runs(model: nn.Module, paths: list[str], example: Tensor) -> Runs:
    sizes: Runs = {}

    def note(path: str, given: Tensor, output: Tensor) -> None:
        module = model.get_submodule(path)
        batched = given.dim() == _IMAGE_DIMS or not isinstance(module, _IMAGE_LAYERS)
        size = size_without_channels(output, last=channels_last(module)) if batched else ()
        sizes.setdefault(path, []).append(size)

    with visited(model, paths, note):
        model(example)
    return sizes


def _objection(in_teacher: list[tuple[int, ...]], in_student: list[tuple[int, ...]]) -> str | None:
    if not in_teacher or not in_student:
        return "it does not run in both networks"
    if len(in_teacher) > 1 or len(in_student) > 1:
        return f"it runs {max(len(in_teacher), len(in_student))} times in a forward pass"
    if in_teacher != in_student:
        return "its output has another size than in the teacher"
    if in_teacher == [()]:
        return "its input is not a batch"
    return None


def _kept_outputs(module: nn.Module, path: str, cut: Cut) -> Tensor | None:
    if is_linear_map(module):
        return cut.slices.get(f"{path}.weight", {}).get(output_dim(module))
    return cut.slices.get(f"{path}.running_mean", {}).get(0)
