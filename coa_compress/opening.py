"""Networks to use, each with the task that knows its files: students, runs and factories."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from coa_compress.checkpoint import load_weights_
from coa_compress.copying import unwrapped
from coa_compress.errors import WeightsError
from coa_compress.factories import build_network, is_factory, working_directory_importable
from coa_compress.protocols import Deployed, Task
from coa_compress.provenance import best_device
from coa_compress.recipe.files import GENERIC_TASK, TASKS, recorded_settings
from coa_compress.students import STUDENT_RECORD, load_student, read_student_record

_BUILTIN = "builtin:"
_BUILTIN_TASK = "dehazing"


def open_network(factory: str, weights: Path | None = None) -> nn.Module:
    """Return the network of a factory, in evaluation mode, on the CPU, without what wraps it.

    Args:
        factory: ``package.module:factory``; a module may lie in the working directory.
        weights: A safetensors file, or a plain state dict of ``torch.save``; every name and shape
            must fit. None for those that the factory gives it.

    Raises:
        ModelError: If it cannot be imported or called, or returns no network.
        WeightsError: If the weights cannot be read or do not fit.
    """
    network = unwrapped(build_network(factory))
    if weights is not None:
        load_weights_(network, weights)
    return network


def open_student(
    source: str, weights: Path | None = None, *, task: str = ""
) -> tuple[nn.Module, Task]:
    """Return a network to use, and the task that knows its files.

    Args:
        source: A run folder, a student folder, ``builtin:teacher``, or ``package.module:factory``.
        weights: Weights of a factory, as in ``open_network``.
        task: Name of the task; by default that of the run or the student, and the generic one,
            ``restoration``, for a factory.

    Raises:
        ModelError: If a factory cannot be used.
        RecipeError: If the record of a student has a setting of the task that is out of range.
        RegistryError: If there is no such task.
        WeightsError: If there is no student, or the weights do not fit, or are given for a network
            that has its own.

    >>> open_student("nowhere")
    Traceback (most recent call last):
    coa_compress.errors.WeightsError: no student in nowhere: give a run folder, or builtin:teacher
    """
    if is_factory(source):
        network = open_network(source, weights)
        task_class = TASKS.get(task or GENERIC_TASK)
        return network.to(best_device()), _task_to_use(task_class, network, {})
    if weights is not None:
        message = f"{source} has weights of its own: give {weights} to package.module:factory only"
        raise WeightsError(message)
    if source.startswith(_BUILTIN):
        if source != f"{_BUILTIN}teacher":
            message = f"there is no {source}: the only built-in network is builtin:teacher"
            raise WeightsError(message)
        teacher = TASKS.get(_BUILTIN_TASK)().build_teacher()
        task_class = TASKS.get(task or _BUILTIN_TASK)
        return teacher.to(best_device()), _task_to_use(task_class, teacher, {})
    folders = [Path(source), Path(source) / "student"]
    folder = next((path for path in folders if (path / STUDENT_RECORD).is_file()), None)
    if folder is None:
        message = f"no student in {source}: give a run folder, or builtin:teacher"
        raise WeightsError(message)
    recorded = read_student_record(folder).task
    if "class" in recorded and not task:
        message = f"the student in {folder} has a task of its own, {recorded['class']}: "
        message += "name another with --task, or use coa_compress.load from Python"
        raise WeightsError(message)
    own = recorded.get("name", "")
    task_class = TASKS.get(task or own)
    with working_directory_importable():
        student = load_student(folder)
    settings: dict[str, Any] = {}
    if task in ("", own):
        source = str(folder / STUDENT_RECORD)
        settings = recorded_settings(task_class.Settings, recorded, source=source)
    return student.to(best_device()), _task_to_use(task_class, student, settings)


def _task_to_use(task_class: Any, network: nn.Module, settings: Mapping[str, Any]) -> Task:
    task: Task
    if issubclass(task_class, Deployed):
        task = task_class.deployed(settings, network)
    else:
        task = task_class()
    return task
