"""The recipe as a value, and which stages and tasks one may name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import AfterValidator

from coa_compress.errors import RecipeError, RegistryError
from coa_compress.factories import is_factory
from coa_compress.registry import Registry
from coa_compress.settings import NonNegativeInt, check_ranges
from coa_compress.stages.state import Stage
from coa_compress.structure.modes import Mode

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        message = (
            f"must be letters, digits, '.', '_' and '-' (it names the run folder), got {name!r}"
        )
        raise RecipeError(message)
    return name


def _check_device(device: str) -> str:
    if not _DEVICE.fullmatch(device):
        message = f"must be auto, cpu, cuda or cuda:N, got {device!r}"
        raise RecipeError(message)
    return device


def _check_model(model: str) -> str:
    if model and not is_factory(model):
        message = f"must be package.module:factory, or empty for the task's teacher, got {model!r}"
        raise RecipeError(message)
    return model


_CHECKED = (("name", _check_name), ("device", _check_device), ("model", _check_model))

Name = Annotated[str, AfterValidator(_check_name)]
"""What a recipe may be called."""
Device = Annotated[str, AfterValidator(_check_device)]
"""Where a recipe may run."""
Model = Annotated[str, AfterValidator(_check_model)]
"""Which network is compressed."""
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""Where randomness starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What may stand in a recipe.

    Args:
        stages: Every stage, in the order of the data.
        tasks: Every task class; its ``Settings`` is a dataclass.
    """

    stages: tuple[type[Stage], ...]
    tasks: Registry[Any]

    def task_class(self, name: str) -> Any:
        """Return the class of a task.

        Raises:
            RegistryError: If there is none of that name, or its plug-in cannot be imported.
        """
        try:
            return self.tasks.get(name)
        except (ImportError, AttributeError) as error:
            message = f"task {name!r} cannot be loaded: {error}: reinstall what provides it"
            raise RegistryError(message) from error

    def stage_types(self) -> dict[str, type[Stage]]:
        """Return the stages by name, in the order of the data."""
        return {stage.name: stage for stage in self.stages}

    def in_order(self, stages: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings by stage name in the order of the data."""
        return {stage.name: stages[stage.name] for stage in self.stages if stage.name in stages}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChoice:
    """Which task, and how.

    Args:
        name: Name in the task registry.
        settings: An instance of the ``Settings`` of that task.
    """

    name: str
    settings: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureChoice:
    """Which part of the network may be cut.

    Args:
        include: Patterns of module paths that may be cut; empty for all.
        exclude: Patterns of module paths that must stay whole.
        mode: ``module`` for students of the network's own class, ``graph`` for students that run
            its exported graph, in which no size is fixed; ``auto`` for the first where it can.
        outputs: Numbers of the outputs whose channels must stay, from 0; empty for all.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mode: Mode = "auto"
    outputs: tuple[NonNegativeInt, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run.

    Args:
        name: Letters, digits, dots, dashes and underscores.
        task: The task and its settings.
        stages: Settings of each stage that runs, by stage name, in the order of the data.
        model: The network to compress, ``package.module:factory``, called without arguments; empty
            for the teacher of the task.
        weights: Its weights, a safetensors file or a plain state dict of ``torch.save``; empty for
            those that the factory gives it.
        seed: In [0, 2**32).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        out: The run folder; empty for ``runs/<name>``.
        structure: Which part of the network may be cut.

    Raises:
        RecipeError: If the name, the model or the device is not of that form, or there are weights
            without a model.
        SettingError: If the seed is out of range.

    >>> Recipe(name="small", task=TaskChoice(name="dehazing", settings=None), stages={}).out
    'runs/small'
    """

    name: Name
    task: TaskChoice
    stages: Mapping[str, Any]
    model: Model = ""
    weights: str = ""
    seed: Seed = 0
    device: Device = "auto"
    out: str = ""
    structure: StructureChoice = field(default_factory=StructureChoice)

    def __post_init__(self) -> None:
        check_ranges(self)
        for key, check in _CHECKED:
            try:
                check(getattr(self, key))
            except RecipeError as error:
                message = f"{key} {error}"
                raise RecipeError(message) from None
        if self.weights and not self.model:
            message = f"weights is {self.weights!r} without the network they are of: set model too"
            raise RecipeError(message)
        object.__setattr__(self, "out", self.out or f"runs/{self.name}")
