"""Saved students: the weights, and how the network follows from its teacher."""

import hashlib
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import AttributePatch
from coa_compress.checkpoint import (
    fill_strictly_,
    from_bytes,
    read_bytes,
    to_bytes,
    write_file,
)
from coa_compress.copying import attribute_tensors, copied, take_attributes_, unwrapped
from coa_compress.errors import (
    FOREIGN_ERRORS,
    ModelError,
    StructureError,
    WeightsError,
    first_line,
)
from coa_compress.factories import declares_network, imported
from coa_compress.structure import rebuild
from coa_compress.structure.graph_student import GraphsBySize, GraphStudent, Slices

STUDENT_RECORD = "student.json"
"""Name of the file that says how a student follows from its teacher."""

STUDENT_WEIGHTS = "student.safetensors"
"""Name of the file with its weights."""

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecord:
    """How a student follows from its teacher, next to its weights.

    Args:
        factory: Class of the teacher, as ``package.module:Class``, or a function without arguments
            that is annotated to return a network.
        arguments: Keyword arguments of that class, JSON values.
        kept: Channels that stayed in each group.
        patches: Attributes that follow a width.
        shapes: Shape of every parameter and buffer that is not as in the teacher.
        task: Name and settings of the task, or the ``class`` of a task given from Python.
        recipe_digest: Identifies the recipe.
        versions: Version of each library that made it.
        settings_sha256: What ``digest_settings`` says of the student; empty for not known. A class
            that needs other arguments than those recorded is then found out.
        assigned: Attributes that ``forward`` itself assigns, such as ``body.0.scale``: values of
            the last input, and no settings.
        attributes: Tensors in attributes, such as ``body.0.mean``, that are saved with the weights.
        graph: For a student that runs the teacher's graph: ``slices``, the kept positions of each
            cut dimension of each tensor, and ``outputs``, whose channels stay; else empty.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    patches: Sequence[AttributePatch] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    recipe_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings_sha256: str = ""
    assigned: Sequence[str] = ()
    attributes: Sequence[str] = ()
    graph: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def apply_shapes_(
    model: nn.Module, patches: Sequence[AttributePatch], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Turn a teacher into the shape of its student; the values of new tensors are 0.

    Args:
        model: A freshly built teacher, changed in place; tensors that it holds under several
            names stay shared.
        patches: Attributes that follow a width.
        shapes: New shape of parameters and buffers by name.

    Raises:
        WeightsError: If the model has no such module, attribute or tensor.

    >>> net = nn.Linear(4, 8)
    >>> apply_shapes_(net, [AttributePatch("", "out_features", 2)], {"weight": (2, 4), "bias": [2]})
    >>> net(torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """
    modules = dict(model.named_modules())
    for patch in patches:
        # a record may come from a stranger: only sizes are ever set
        before = getattr(modules.get(patch.module), patch.attribute, None)
        if isinstance(before, bool) or not isinstance(before, int | tuple | list):
            name = _name_of(patch.module, patch.attribute)
            message = f"{type(model).__name__} has no size {name!r} to set to {patch.value}"
            raise WeightsError(message)
    try:
        rebuild.apply_shapes_(model, patches, shapes)
    except StructureError as error:
        raise WeightsError(str(error)) from None


def save_student(folder: Path, student: nn.Module, *, record: StudentRecord) -> None:
    """Write a student: ``student.safetensors``, then ``student.json`` that vouches for it.

    Args:
        folder: Made when absent; other files in it are left alone.
        student: The network, unchanged.
        record: How it follows from its teacher.

    Raises:
        WeightsError: If the record is not made of JSON values, or a file cannot be written.
    """
    tensors = {n: t for n, t in student.state_dict().items() if isinstance(t, Tensor)}
    unsaved = {n: t for n, t in student.named_buffers() if n not in tensors}
    held = attribute_tensors(source_of(student))
    weights = to_bytes(tensors | unsaved | {name: held[name] for name in record.attributes})
    document = {
        "format": _FORMAT,
        **asdict(record),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "not_in_state_dict": sorted(unsaved),
    }
    try:
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        message = f"cannot record the student in {folder}: {error}: use plain JSON values"
        raise WeightsError(message) from None
    write_file(folder / STUDENT_WEIGHTS, weights)
    write_file(folder / STUDENT_RECORD, text + "\n")


def read_student_record(folder: Path) -> StudentRecord:
    """Return how a saved student follows from its teacher.

    Args:
        folder: What ``save_student`` wrote.

    Raises:
        WeightsError: If there is no record, or it is damaged or of a newer format.
    """
    document = _read_document(folder)
    try:
        return _to_record(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{folder / STUDENT_RECORD} is damaged ({error!r}): save the student again"
        raise WeightsError(message) from None


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / STUDENT_RECORD
    try:
        document = json.loads(read_bytes(path))
    except ValueError as error:
        message = f"{path} is damaged ({error}): save the student again"
        raise WeightsError(message) from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        message = (
            f"{path} is no student record of format {_FORMAT}: update coa-compress or save again"
        )
        raise WeightsError(message)
    return document


def _to_record(document: Mapping[str, Any]) -> StudentRecord:
    # what is absent in files of earlier versions
    absent = {"settings_sha256": "", "assigned": [], "attributes": [], "graph": {}}
    known = absent | dict(document)
    values = {f.name: known[f.name] for f in fields(StudentRecord)}
    for name in ("arguments", "kept", "shapes", "task", "versions", "graph"):
        values[name] = dict(values[name].items())
    values["shapes"] = {n: list(_to_sizes(shape)) for n, shape in values["shapes"].items()}
    for name in ("assigned", "attributes"):
        values[name] = tuple(str(attribute) for attribute in values[name])
    values["patches"] = [_to_patch(patch) for patch in values["patches"]]
    return StudentRecord(**values)


def _to_patch(patch: Mapping[str, Any]) -> AttributePatch:
    value = patch["value"]
    sizes = _to_sizes(value) if isinstance(value, list) else int(value)
    return AttributePatch(str(patch["module"]), str(patch["attribute"]), sizes)


def _to_sizes(values: Sequence[Any]) -> tuple[int, ...]:
    sizes = tuple(int(value) for value in values)
    if any(size < 0 for size in sizes):
        message = f"sizes {sizes} must not be negative"
        raise ValueError(message)
    return sizes


def load_student(folder: Path | str, *, model: nn.Module | None = None) -> nn.Module:
    """Return a saved student, in evaluation mode.

    Args:
        folder: What ``save_student`` wrote.
        model: A freshly built teacher, copied; None builds one from the record, by importing the
            module that the record names and calling the network class in it, or a function
            without arguments that is annotated to return a network, nothing else.

    Raises:
        WeightsError: If a file is missing or damaged, the files do not belong together, or the
            teacher cannot be built or does not fit.
    """
    folder = Path(folder)
    document = _read_document(folder)
    record = read_student_record(folder)
    weights = read_bytes(folder / STUDENT_WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != document.get("weights_sha256"):
        message = (
            f"{folder / STUDENT_WEIGHTS} is damaged or does not belong to {STUDENT_RECORD} beside "
            f"it: save the student again"
        )
        raise WeightsError(message)
    tensors = from_bytes(folder / STUDENT_WEIGHTS, weights)
    held = {name: tensors.pop(name) for name in record.attributes if name in tensors}
    if model is None:
        student = _build_student(record, held, folder / STUDENT_RECORD)
        digest = digest_settings(student, without=record.assigned)
        if record.settings_sha256 not in ("", digest):
            message = (
                f"the teacher of {folder / STUDENT_RECORD} was built with arguments that are not "
                f"recorded: pass model=..., a freshly built teacher"
            )
            raise WeightsError(message)
    else:
        student = _follow(copied(unwrapped(model)), record, held)
    _take_dtypes_and_buffers_(student, tensors, document.get("not_in_state_dict", []))
    fill_strictly_(student, tensors, path=folder / STUDENT_WEIGHTS)
    return student.eval()


def _take_dtypes_and_buffers_(
    student: nn.Module, tensors: dict[str, Tensor], unsaved: Sequence[str]
) -> None:
    places = rebuild.named_tensors(student)
    for name in unsaved:
        saved = tensors.pop(name, None)
        if saved is not None and name in places:
            rebuild.replace_tensors_(student, {name: saved.to(places[name].device)})
    for name, place in places.items():
        if name in tensors and place.dtype != tensors[name].dtype:
            place.data = place.data.to(tensors[name].dtype)


def source_of(student: nn.Module) -> nn.Module:
    """Return the network whose attributes a student has: its own, or that of its graph."""
    return student.source if isinstance(student, GraphStudent) else student


def digest_settings(model: nn.Module, *, without: Collection[str] = ()) -> str:
    """Return an identity of the plain attributes of every module, such as strides and slopes.

    Args:
        model: Any network.
        without: Attributes that are no settings, such as ``body.0.scale``.

    >>> digest_settings(nn.LeakyReLU(0.1)) == digest_settings(nn.LeakyReLU(0.2))
    False
    """
    plain = (bool, int, float, str, tuple, type(None))
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        settings = {n: v for n, v in vars(module).items() if n != "training" and n[:1] != "_"}
        settings = {n: v for n, v in settings.items() if _name_of(path, n) not in without}
        named = sorted((n, repr(v)) for n, v in settings.items() if isinstance(v, plain))
        digest.update(repr((path, type(module).__qualname__, named)).encode())
    return digest.hexdigest()


def _name_of(path: str, attribute: str) -> str:
    return f"{path}.{attribute}".removeprefix(".")


def _build_student(record: StudentRecord, held: Mapping[str, Tensor], path: Path) -> nn.Module:
    teacher = _build_teacher(record, path)
    try:
        return _follow(teacher, record, held)
    except WeightsError as error:
        # such as an nn.Sequential, whose class alone does not say what is in it
        message = (
            f"the teacher of {path} cannot be built from its class alone ({error}): "
            f"pass model=..., a freshly built teacher"
        )
        raise WeightsError(message) from None


def _follow(teacher: nn.Module, record: StudentRecord, held: Mapping[str, Tensor]) -> nn.Module:
    """Return the student that follows from a teacher, which is used up, with other weights."""
    take_attributes_(teacher, held)
    if not record.graph:
        apply_shapes_(teacher, record.patches, record.shapes)
        return teacher
    try:
        slices = _to_slices(record.graph, rebuild.named_tensors(teacher))
        outputs = [int(number) for number in record.graph.get("outputs", ())]
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"the graph of the student's record is damaged ({error!r}): save it again"
        raise WeightsError(message) from None
    graphs = GraphsBySize(teacher, outputs)
    apply_shapes_(teacher, record.patches, record.shapes)
    return GraphStudent(teacher, graphs, slices)


def graph_record(student: nn.Module) -> dict[str, Any]:
    """Return what the record of a student must say of its graph; empty when it runs none."""
    if not isinstance(student, GraphStudent):
        return {}
    slices = {
        name: {str(dim): kept.tolist() for dim, kept in dims.items()}
        for name, dims in student.slices.items()
    }
    return {"slices": slices, "outputs": list(student.outputs)}


def _to_slices(graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Slices:
    slices: dict[str, dict[int, Tensor]] = {}
    for name, dims in graph["slices"].items():
        for dim, kept in dims.items():
            positions = torch.tensor([int(position) for position in kept])
            shape = tensors[name].shape if name in tensors else ()
            fits = int(dim) in range(len(shape)) and len(kept) > 0
            if not fits or not 0 <= int(positions.min()) <= int(positions.max()) < shape[int(dim)]:
                message = (
                    f"the teacher has no such positions to keep in dimension {dim} of {name!r}"
                )
                raise WeightsError(message)
            slices.setdefault(name, {})[int(dim)] = positions
    return slices


def _build_teacher(record: StudentRecord, path: Path) -> nn.Module:
    found = _declared(record)
    if found is None:
        problem = "is no network class, nor a function annotated to return one, to import from here"
    else:
        try:
            teacher: nn.Module = found(**record.arguments)
        except FOREIGN_ERRORS as error:
            problem = f"cannot be built from the arguments recorded ({first_line(error)})"
        else:
            return unwrapped(teacher)
    message = (
        f"the teacher {record.factory!r} of {path} {problem}: "
        f"pass model=..., a freshly built teacher"
    )
    raise WeightsError(message)


def _declared(record: StudentRecord) -> Any:
    """Return the network class of a record, or its function without arguments; else None."""
    try:
        found = imported(str(record.factory))
    except ModelError:
        return None
    safe = declares_network(found) and (inspect.isclass(found) or not record.arguments)
    return found if safe else None
